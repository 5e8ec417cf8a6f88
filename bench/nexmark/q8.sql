-- New users: people who registered and opened an auction within the same ten seconds.
CREATE VIEW people AS
SELECT id, name, window_start, window_end
FROM TUMBLE(TABLE person, DESCRIPTOR(date_time), INTERVAL '10' SECOND)
GROUP BY id, name, window_start, window_end;

CREATE VIEW sellers AS
SELECT seller, window_start, window_end
FROM TUMBLE(TABLE auction, DESCRIPTOR(date_time), INTERVAL '10' SECOND)
GROUP BY seller, window_start, window_end;

INSERT INTO out
SELECT p.id, p.name, p.window_start
FROM people p JOIN sellers s
    ON p.id = s.seller AND p.window_start = s.window_start AND p.window_end = s.window_end;
