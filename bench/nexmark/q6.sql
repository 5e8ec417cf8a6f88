-- Average selling price by seller: of the last ten auctions and the one at hand.
INSERT INTO out
SELECT seller, id,
    avg(final) OVER (PARTITION BY seller ORDER BY sold, id ROWS BETWEEN 10 PRECEDING AND CURRENT ROW) AS average
FROM (
    SELECT a.id, a.seller, max(b.price) AS final, max(b.date_time) AS sold
    FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
    GROUP BY a.id, a.seller
);
