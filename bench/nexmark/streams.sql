-- What every query of Nexmark reads, and where its rows go. `cargo run --release -p bench -- nexmark` puts this in front of
-- each query. People, auctions and bids come 1 : 3 : 46, ten thousand events a second of event time.
CREATE STREAM person (
    id BIGINT, name TEXT, email TEXT, credit_card TEXT, city TEXT, state TEXT, date_time TIMESTAMP, extra TEXT,
    WATERMARK FOR date_time AS date_time - INTERVAL '4' SECOND
) WITH (connector = 'program');

CREATE STREAM auction (
    id BIGINT, item_name TEXT, description TEXT, initial_bid BIGINT, reserve BIGINT, date_time TIMESTAMP,
    expires TIMESTAMP, seller BIGINT, category BIGINT, extra TEXT,
    WATERMARK FOR date_time AS date_time - INTERVAL '4' SECOND
) WITH (connector = 'program');

CREATE STREAM bid (
    auction BIGINT, bidder BIGINT, price BIGINT, channel TEXT, url TEXT, date_time TIMESTAMP, extra TEXT,
    WATERMARK FOR date_time AS date_time - INTERVAL '4' SECOND
) WITH (connector = 'program');

CREATE SINK out WITH (connector = 'collect');
