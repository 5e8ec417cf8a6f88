-- Windows by arrival: how many bids of each bidder came within ten seconds.
INSERT INTO out
SELECT bidder, count(*) AS bids, window_start, window_end
FROM TUMBLE(TABLE bid, DESCRIPTOR(_timestamp), INTERVAL '10' SECOND)
GROUP BY bidder, window_start, window_end;
