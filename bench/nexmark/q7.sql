-- Highest bid: the bids with the highest price of each ten seconds.
CREATE VIEW highest AS
SELECT window_start, window_end, max(price) AS price
FROM TUMBLE(TABLE bid, DESCRIPTOR(date_time), INTERVAL '10' SECOND)
GROUP BY window_start, window_end;

INSERT INTO out
SELECT b.auction, b.price, b.bidder, b.date_time, b.extra
FROM bid b JOIN highest h
    ON b.price = h.price AND b.date_time >= h.window_start AND b.date_time < h.window_end;
