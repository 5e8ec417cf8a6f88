-- The sample as a live stream: JSON lines over TCP, a partition for each connection.
CREATE STREAM posts (
  id BIGINT NOT NULL,
  text TEXT NOT NULL,
  created_at TIMESTAMP NOT NULL,
  WATERMARK FOR created_at AS created_at - INTERVAL '100' MILLISECOND
) WITH (
  connector = 'tcp', address = '{address}', receivers = '{receivers}', format = 'json',
  -- Of each receiver's records the log keeps the last hour, and at most so many bytes.
  retention_age = '1h', retention_bytes = '128MB'
);
