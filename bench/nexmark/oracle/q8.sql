SELECT p.id, p.name, p.window_start
FROM (SELECT DISTINCT id, name, date_bin(INTERVAL '10' SECOND, date_time) AS window_start FROM person) p
JOIN (SELECT DISTINCT seller, date_bin(INTERVAL '10' SECOND, date_time) AS window_start FROM auction) s
    ON p.id = s.seller AND p.window_start = s.window_start;
