SELECT bidder, count(*) AS bids, min(date_time) AS window_start, max(date_time) + INTERVAL '10' SECOND AS window_end
FROM (
    SELECT bidder, date_time, sum(begins) OVER (PARTITION BY bidder ORDER BY date_time) AS session
    FROM (
        SELECT bidder, date_time,
            CASE WHEN date_time - lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) < INTERVAL '10' SECOND
                THEN 0 ELSE 1 END AS begins
        FROM bid
    )
)
GROUP BY bidder, session;
