-- Pass through: what reading and writing costs.
INSERT INTO out SELECT auction, bidder, price, date_time, extra FROM bid;
