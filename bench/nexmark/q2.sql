-- Selection: bids on some auctions.
INSERT INTO out SELECT auction, price FROM bid WHERE auction % 123 = 0;
