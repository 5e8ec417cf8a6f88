-- Bounded side input: bids with what a table knows of them.
CREATE TABLE side_input WITH (connector = 'csv', path = '$DIR/side_input.csv');

INSERT INTO out
SELECT b.auction, b.bidder, b.price, b.date_time, s.value
FROM bid b JOIN side_input s ON b.auction % 10000 = s.key;
