-- Hot items: the auctions with most bids in the last ten seconds, each two seconds.
INSERT INTO out
SELECT auction, num, window_start
FROM (
    SELECT auction, window_start, count(*) AS num, rank() OVER (PARTITION BY window_start ORDER BY count(*) DESC) AS place
    FROM HOP(TABLE bid, DESCRIPTOR(date_time), INTERVAL '2' SECOND, INTERVAL '10' SECOND)
    GROUP BY auction, window_start
)
WHERE place = 1;
