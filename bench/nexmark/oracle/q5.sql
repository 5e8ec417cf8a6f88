SELECT auction, num, window_start
FROM (
    SELECT auction, window_start, count(*) AS num, rank() OVER (PARTITION BY window_start ORDER BY count(*) DESC) AS place
    FROM (
        SELECT auction, date_bin(INTERVAL '2' SECOND, date_time) - back AS window_start
        FROM bid CROSS JOIN (
            VALUES (INTERVAL '0' SECOND), (INTERVAL '2' SECOND), (INTERVAL '4' SECOND), (INTERVAL '6' SECOND), (INTERVAL '8' SECOND)
        ) AS backs (back)
    )
    GROUP BY auction, window_start
)
WHERE place = 1;
