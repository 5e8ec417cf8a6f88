SELECT bidder, count(*) AS bids, window_start, window_start + INTERVAL '10' SECOND AS window_end
FROM (SELECT bidder, date_bin(INTERVAL '10' SECOND, _timestamp) AS window_start FROM bid)
GROUP BY bidder, window_start;
