-- What trends on the stream `posts`: the top ten of the last 60 seconds, each second.

CREATE VIEW hashtags AS
SELECT window_end, concat('#', tag) AS hashtag, count(*) AS posts
FROM (
  SELECT window_start, window_end, unnest(hashtags(lower(text))) AS tag
  FROM HOP(TABLE posts, DESCRIPTOR(created_at), INTERVAL '1' SECOND, INTERVAL '60' SECOND)
)
GROUP BY window_start, window_end, tag
ORDER BY posts DESC, hashtag
LIMIT 10;

CREATE VIEW words AS
SELECT window_end, word, count(*) AS uses
FROM (
  SELECT window_start, window_end, unnest(words(text)) AS word
  FROM HOP(TABLE posts, DESCRIPTOR(created_at), INTERVAL '1' SECOND, INTERVAL '60' SECOND)
)
WHERE char_length(word) > 2 AND word NOT IN (
  'about', 'after', 'again', 'all', 'also', 'always', 'and', 'anonymous', 'any', 'are', 'aren''t', 'because', 'been',
  'before', 'being', 'but', 'can', 'can''t', 'com', 'could', 'did', 'didn''t', 'does', 'doesn''t', 'doing', 'don',
  'don''t', 'even', 'ever', 'every', 'for', 'from', 'get', 'gets', 'getting', 'going', 'gonna', 'got', 'had', 'has',
  'have', 'haven''t', 'he''s', 'her', 'here', 'him', 'his', 'how', 'http', 'https', 'i''d', 'i''ll', 'i''m', 'i''ve',
  'into', 'isn''t', 'it''s', 'its', 'just', 'last', 'let', 'like', 'made', 'make', 'makes', 'many', 'more', 'most',
  'much', 'need', 'never', 'not', 'now', 'off', 'one', 'only', 'other', 'our', 'out', 'over', 'really', 'said', 'same',
  'say', 'see', 'she', 'should', 'some', 'something', 'still', 'such', 'take', 'than', 'that', 'that''s', 'the', 'their',
  'them', 'then', 'there', 'there''s', 'these', 'they', 'they''re', 'thing', 'this', 'those', 'through', 'too', 'two',
  'until', 'url', 'url_removed', 'use', 'very', 'want', 'was', 'wasn''t', 'way', 'we''re', 'well', 'were', 'what',
  'what''s', 'when', 'where', 'which', 'while', 'who', 'why', 'will', 'with', 'won''t', 'would', 'www', 'yes', 'yet',
  'you', 'you''re', 'your'
)
GROUP BY window_start, window_end, word
ORDER BY uses DESC, word
LIMIT 10;
