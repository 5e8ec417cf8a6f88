-- User sessions: how many bids each bidder made without a pause of ten seconds.
INSERT INTO out
SELECT bidder, count(*) AS bids, window_start, window_end
FROM SESSION(TABLE bid, DESCRIPTOR(date_time), INTERVAL '10' SECOND)
GROUP BY bidder, window_start, window_end;
