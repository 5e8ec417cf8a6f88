SELECT b.auction, b.price, b.bidder, b.date_time, b.extra
FROM bid b JOIN (
    SELECT date_bin(INTERVAL '10' SECOND, date_time) AS window_start, max(price) AS price FROM bid GROUP BY 1
) h ON b.price = h.price AND date_bin(INTERVAL '10' SECOND, b.date_time) = h.window_start;
