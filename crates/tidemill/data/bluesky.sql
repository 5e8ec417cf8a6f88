-- New posts of Bluesky: the public Jetstream, without credentials.
CREATE STREAM posts (
  did TEXT NOT NULL,
  text TEXT,
  langs TEXT[],
  created_at TIMESTAMP NOT NULL,
  WATERMARK FOR created_at AS created_at - INTERVAL '100' MILLISECOND
) WITH (
  connector = 'bluesky', {url}
  format = 'json',
  path.text = 'commit.record.text',
  path.langs = 'commit.record.langs',
  path.created_at = 'time_us',
  timestamp = 'us',
  -- The log keeps the last hour, and at most so many bytes.
  retention_age = '1h', retention_bytes = '512MB'
);
