-- Auction top ten: the highest bids on each auction.
INSERT INTO out
SELECT auction, bidder, price, channel, url, date_time, extra, place
FROM (
    SELECT *, row_number() OVER (PARTITION BY auction ORDER BY price DESC, date_time, bidder) AS place FROM bid
)
WHERE place <= 10;
