//! W2's tweets: JSON lines in the shape of Twitter's v1.1 API, 0.7 to 2 KB.
//!
//! About thirty fields at the top, with `user` and `entities` objects inside
//! that have a `lang`, a `created_at` and a `text` of their own, as the
//! original has. `lang` stands near the end. Event time is `created_at`, ISO
//! 8601 in milliseconds: [`PER_SECOND`] tweets a second in the order of the
//! lines, each up to [`JITTER_MS`] late.
//!
//! What the text holds on purpose: hashtags in mixed case and several scripts,
//! `#` where no hashtag is (`C#5`, `#1`, `a#b`), escapes (`\n`, `\"`, `\/`,
//! `\u00e9`, `\ud83d\ude00`), and the [`KEYWORD`] in some that aren't English.

use super::{
    random::{Random, Zipf},
    words::Words,
};
use std::io::Write;

/// Tweets a second of event time.
pub(crate) const PER_SECOND: u64 = 2_000;
/// A tweet's time is behind that of its place by less than this.
pub(crate) const JITTER_MS: u64 = 500;
/// Ids begin here; that of each tweet is less than 4,096 beyond 4,096 times its place.
pub(crate) const ID: u64 = 1_900_000_000_000_000_000;
/// Event time of the first tweet, milliseconds since 1970: 2026-01-01T00:00:00Z.
pub(crate) const START_MS: u64 = 1_767_225_600_000;
/// A tweet with this in its text is kept whatever its language.
pub(crate) const KEYWORD: &str = "tsunami";
/// Distinct hashtags at most; drawn by Zipf's law.
pub(crate) const TAGS: u32 = 20_000;

/// A language: how many of a hundred tweets, its code, its words.
struct Language {
    percent: usize,
    code: &'static str,
    words: &'static [&'static str],
    /// What stands between words.
    space: &'static str,
}

/// English words come from W1's vocabulary.
const LANGUAGES: &[Language] = &[
    Language { percent: 45, code: "en", words: &[], space: " " },
    Language {
        percent: 16,
        code: "ja",
        words: &[
            "今日は",
            "とても",
            "いい",
            "天気",
            "です",
            "ね",
            "東京",
            "電車",
            "ライブ",
            "楽しみ",
            "おはよう",
            "ございます",
            "明日",
            "も",
            "頑張る",
            "ニュース",
        ],
        space: "",
    },
    Language {
        percent: 12,
        code: "es",
        words: &[
            "qué", "día", "más", "bonito", "mañana", "vamos", "al", "fútbol", "con", "la", "niña", "corazón",
            "también", "está", "aquí", "ahora",
        ],
        space: " ",
    },
    Language {
        percent: 8,
        code: "ar",
        words: &[
            "صباح",
            "الخير",
            "اليوم",
            "في",
            "المدينة",
            "كرة",
            "القدم",
            "جميل",
            "شكرا",
            "على",
            "كل",
            "شيء",
            "الآن",
            "خبر",
            "عاجل",
        ],
        space: " ",
    },
    Language {
        percent: 7,
        code: "zh",
        words: &[
            "今天", "天气", "很好", "我们", "一起", "去", "北京", "新闻", "音乐", "电影", "喜欢", "这个", "世界",
            "非常", "美丽",
        ],
        space: "",
    },
    Language {
        percent: 6,
        code: "pt",
        words: &[
            "não",
            "é",
            "só",
            "amanhã",
            "coração",
            "jogo",
            "hoje",
            "você",
            "também",
            "está",
            "feliz",
            "música",
            "São",
            "Paulo",
        ],
        space: " ",
    },
    Language {
        percent: 4,
        code: "ko",
        words: &["오늘", "날씨가", "정말", "좋아요", "서울", "음악", "사랑해", "친구", "내일", "만나요"],
        space: " ",
    },
    Language {
        percent: 2,
        code: "hi",
        words: &["आज", "का", "दिन", "बहुत", "अच्छा", "है", "भारत", "क्रिकेट", "नमस्ते"],
        space: " ",
    },
];

const EMOJI: &[&str] = &["😀", "😂", "🔥", "❤️", "🎉", "👍", "🌊", "🚀", "😭", "🙏"];
const TRAPS: &[&str] = &["C#5", "we are #1", "a#b", "# alone", "&#39;", "50% #"];
const SCRIPTS: &[&str] =
    &["東京", "ライブ", "新闻", "足球", "عاجل", "고양이", "наука", "москва", "café", "niño", "straße", "über"];
const PLACES: &[&str] = &["", "London", "São Paulo", "東京都", "New York, NY", "Lagos", "القاهرة", "Berlin \\/ Köln"];
const CLIENTS: &[&str] = &["Twitter for iPhone", "Twitter for Android", "Twitter Web App", "TweetDeck"];

/// The vocabularies of one seed.
#[derive(Debug)]
pub(crate) struct Tweets {
    seed: u64,
    words: Words,
    word_law: Zipf,
    tags: Vec<Tag>,
    tag_law: Zipf,
}

/// A hashtag without its `#`, as people write it.
#[derive(Debug)]
struct Tag {
    spellings: [String; 3],
}

impl Tweets {
    /// The vocabularies of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let words = Words::new(seed);
        let mut random = Random::new(seed, u64::MAX - 1);
        let tags = (0..TAGS as usize).map(|rank| tag(&mut random, &words, rank)).collect();
        Self { seed, words, word_law: Zipf::new(2_000, 0.9), tags, tag_law: Zipf::new(TAGS, 1.0) }
    }

    /// Appends tweet `index` and its `\n`.
    pub(crate) fn tweet(&self, index: u64, into: &mut Vec<u8>) {
        let random = &mut Random::new(self.seed, index);
        let mut draw = random.below(100);
        let language = LANGUAGES.iter().find(|l| {
            let here = draw < l.percent;
            draw = draw.saturating_sub(l.percent);
            here
        });
        let text = self.text(random, language.unwrap_or(&LANGUAGES[0]));
        self.object(index, random, language.unwrap_or(&LANGUAGES[0]), &text, into);
    }

    fn text(&self, random: &mut Random, language: &Language) -> Text {
        let mut text = Text::default();
        if random.chance(25) {
            text.mention(&format!("{}{}", self.words.word(60 + random.below(900)), random.below(1_000)));
            text.plain.push(' ');
        }
        let parts = 6 + random.below(16);
        for i in 0..parts {
            if language.words.is_empty() {
                text.plain.push_str(self.words.word(self.word_law.draw(random)));
            } else {
                text.plain.push_str(random.pick(language.words));
            }
            text.plain.push_str(if random.chance(4) && i + 1 < parts { "\n" } else { language.space });
        }
        if random.chance(3) {
            text.plain.push_str(KEYWORD);
        }
        if random.chance(5) {
            text.plain.push(' ');
            text.plain.push_str(random.pick(TRAPS));
        }
        if random.chance(6) {
            text.plain.push_str(" \"");
            text.plain.push_str(self.words.word(random.below(500)));
            text.plain.push('"');
        }
        for _ in 0..[0, 0, 0, 1, 1, 1, 2, 2, 3, 4][random.below(10)] {
            let tag = &self.tags[self.tag_law.draw(random)];
            text.tag(&tag.spellings[random.below(3)]);
        }
        if random.chance(25) {
            text.plain.push(' ');
            text.plain.push_str(random.pick(EMOJI));
        }
        if random.chance(35) {
            text.url(random.next());
        }
        text
    }

    fn object(&self, index: u64, random: &mut Random, language: &Language, text: &Text, into: &mut Vec<u8>) {
        // Some clients write every letter beyond ASCII as an escape.
        let ascii = random.chance(20);
        let id = ID + index * 4_096 + random.next() % 4_096;
        let at = START_MS + index * 1_000 / PER_SECOND + random.next() % JITTER_MS;
        let user = 1_000_000 + random.below(50_000_000);
        let name = self.words.word(60 + random.below(20_000));
        put(into, format_args!(r#"{{"created_at":"{}","id":{id},"id_str":"{id}","text":""#, Iso(at)));
        escape(&text.plain, ascii, into);
        let client = random.pick(CLIENTS);
        put(
            into,
            format_args!(
                r#"","source":"<a href=\"https:\/\/twitter.com\/download\" rel=\"nofollow\">{client}<\/a>","truncated":false,"#
            ),
        );
        if let (Some(first), true) = (text.mentions.first(), random.chance(60)) {
            let reply = id - random.next() % 1_000_000_000;
            put(
                into,
                format_args!(
                    r#""in_reply_to_status_id":{reply},"in_reply_to_status_id_str":"{reply}","in_reply_to_user_id":{user},"in_reply_to_screen_name":"#
                ),
            );
            string(&first.0, ascii, into);
        } else {
            into.extend_from_slice(br#""in_reply_to_status_id":null,"in_reply_to_status_id_str":null,"in_reply_to_user_id":null,"in_reply_to_screen_name":null"#);
        }
        put(into, format_args!(r#","user":{{"id":{user},"id_str":"{user}","name":"#));
        string(&format!("{name} {}", if random.chance(20) { random.pick(EMOJI) } else { "" }), ascii, into);
        put(
            into,
            format_args!(
                r#","screen_name":"user_{user}","location":"{}","url":null,"description":"#,
                random.pick(PLACES)
            ),
        );
        let mut about = String::new();
        for _ in 0..random.below(12) {
            about.push_str(if language.words.is_empty() {
                self.words.word(self.word_law.draw(random))
            } else {
                random.pick(language.words)
            });
            about.push_str(language.space);
        }
        string(&about, ascii, into);
        put(
            into,
            format_args!(
                r#","protected":false,"verified":{},"followers_count":{},"friends_count":{},"listed_count":{},"favourites_count":{},"statuses_count":{},"created_at":"{}","geo_enabled":{},"lang":null,"profile_image_url_https":"https:\/\/pbs.twimg.com\/profile_images\/{user}\/normal.jpg","default_profile":{}}},"geo":null,"coordinates":null,"#,
                random.chance(3),
                random.below(100_000),
                random.below(5_000),
                random.below(300),
                random.below(50_000),
                random.below(200_000),
                Iso(START_MS - 1_000 * random.below(300_000_000) as u64),
                random.chance(30),
                random.chance(50),
            ),
        );
        if random.chance(8) {
            into.extend_from_slice(br#""place":{"id":"01a9a39529b27f36","place_type":"city","name":"Manhattan","full_name":"Manhattan, NY","country_code":"US","country":"United States","bounding_box":{"type":"Polygon","coordinates":[[[-74.026675,40.683935],[-74.026675,40.877483],[-73.910408,40.877483],[-73.910408,40.683935]]]}},"#);
        } else {
            into.extend_from_slice(br#""place":null,"#);
        }
        put(
            into,
            format_args!(
                r#""contributors":null,"is_quote_status":false,"quote_count":{},"reply_count":{},"retweet_count":{},"favorite_count":{},"#,
                random.below(5),
                random.below(20),
                random.below(500),
                random.below(2_000)
            ),
        );
        text.entities(ascii, into);
        if random.chance(15) {
            let media = id - 7;
            put(
                into,
                format_args!(
                    r#""extended_entities":{{"media":[{{"id":{media},"id_str":"{media}","media_url_https":"https:\/\/pbs.twimg.com\/media\/{media:x}.jpg","url":"https:\/\/t.co\/{media:x}","type":"photo","sizes":{{"thumb":{{"w":150,"h":150,"resize":"crop"}},"small":{{"w":680,"h":453,"resize":"fit"}},"large":{{"w":2048,"h":1365,"resize":"fit"}}}}}}]}},"#
                ),
            );
        }
        put(
            into,
            format_args!(
                r#""favorited":false,"retweeted":false,"possibly_sensitive":{},"filter_level":"low","lang":"{}","matching_rules":[{{"tag":null}}],"timestamp_ms":"{at}"}}"#,
                random.chance(4),
                language.code
            ),
        );
        into.push(b'\n');
    }
}

/// A text as read, and what is in it by characters.
#[derive(Debug, Default)]
struct Text {
    plain: String,
    tags: Vec<(String, usize)>,
    mentions: Vec<(String, usize)>,
    urls: Vec<(String, usize)>,
}

impl Text {
    fn at(&self) -> usize {
        self.plain.chars().count()
    }

    fn mention(&mut self, name: &str) {
        self.mentions.push((name.into(), self.at()));
        self.plain.push('@');
        self.plain.push_str(name);
    }

    fn tag(&mut self, tag: &str) {
        self.plain.push(' ');
        self.tags.push((tag.into(), self.at()));
        self.plain.push('#');
        self.plain.push_str(tag);
    }

    fn url(&mut self, bits: u64) {
        self.plain.push(' ');
        let url = format!("https://t.co/{:010x}", bits >> 24);
        self.urls.push((url.clone(), self.at()));
        self.plain.push_str(&url);
    }

    fn entities(&self, ascii: bool, into: &mut Vec<u8>) {
        into.extend_from_slice(br#""entities":{"hashtags":["#);
        for (i, (tag, at)) in self.tags.iter().enumerate() {
            into.extend_from_slice(if i == 0 { br#"{"text":"# } else { br#",{"text":"# });
            string(tag, ascii, into);
            put(into, format_args!(r#","indices":[{at},{}]}}"#, at + 1 + tag.chars().count()));
        }
        into.extend_from_slice(br#"],"urls":["#);
        for (url, at) in &self.urls {
            into.extend_from_slice(br#"{"url":"#);
            string(url, ascii, into);
            let path = &url[url.len() - 10..];
            put(
                into,
                format_args!(
                    r#","expanded_url":"https:\/\/news.example.com\/2026\/01\/{path}\/story","display_url":"news.example.com\/2026\/01\/…","indices":[{at},{}]}}"#,
                    at + url.len()
                ),
            );
        }
        into.extend_from_slice(br#"],"user_mentions":["#);
        for (name, at) in &self.mentions {
            into.extend_from_slice(br#"{"screen_name":"#);
            string(name, ascii, into);
            into.extend_from_slice(br#","name":"#);
            string(name, ascii, into);
            put(
                into,
                format_args!(r#","id":{at},"id_str":"{at}","indices":[{at},{}]}}"#, at + 1 + name.chars().count()),
            );
        }
        into.extend_from_slice(br#"],"symbols":[]},"#);
    }
}

/// One in eight in another script or with accents, the rest from words of a natural language.
fn tag(random: &mut Random, words: &Words, rank: usize) -> Tag {
    let first = words.word(60 + random.below(8_000));
    let second = words.word(60 + random.below(8_000));
    let (plain, title) = match random.below(8) {
        0 => {
            let script = SCRIPTS[rank % SCRIPTS.len()];
            (format!("{script}{rank}"), format!("{}{rank}", capital(script)))
        }
        1 | 2 => (first.to_lowercase(), capital(first)),
        3 => (format!("{first}_{second}"), format!("{}_{}", capital(first), capital(second))),
        4 => (format!("{first}2026"), format!("{}2026", capital(first))),
        _ => (format!("{first}{second}"), format!("{}{}", capital(first), capital(second))),
    };
    let loud = plain.to_uppercase();
    Tag { spellings: [plain, title, loud] }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn put(into: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    into.write_fmt(text).expect("a vector takes every byte");
}

fn string(text: &str, ascii: bool, into: &mut Vec<u8>) {
    into.push(b'"');
    escape(text, ascii, into);
    into.push(b'"');
}

/// The inside of a JSON string; `ascii` writes `\u` for every other letter.
fn escape(text: &str, ascii: bool, into: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '"' => into.extend_from_slice(br#"\""#),
            '\\' => into.extend_from_slice(br"\\"),
            '/' => into.extend_from_slice(br"\/"),
            '\n' => into.extend_from_slice(br"\n"),
            _ if c.is_ascii() || !ascii => into.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| put(into, format_args!(r"\u{unit:04x}"))),
        }
    }
}

/// Milliseconds since 1970 as `2026-01-01T00:00:00.000Z`.
struct Iso(u64);

impl std::fmt::Display for Iso {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Howard Hinnant's `civil_from_days`, for days after 1970.
        let days = self.0 / 86_400_000 + 719_468;
        let era = days / 146_097;
        let of_era = days % 146_097;
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year + era * 400 + u64::from(month <= 2);
        let (ms, s) = (self.0 % 1_000, self.0 / 1_000);
        let (hour, minute, second) = (s / 3_600 % 24, s / 60 % 60, s % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn tweets_are_json_of_the_promised_shape() {
        let tweets = Tweets::new(3);
        let (mut english, mut tags, mut escaped, mut kept, mut bytes) = (0, 0, 0, 0, 0);
        for i in 0..2_000 {
            let mut line = Vec::new();
            tweets.tweet(i, &mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            assert!((700..3_500).contains(&line.len()), "{} bytes", line.len());
            bytes += line.len();
            let tweet: Value = serde_json::from_slice(&line).unwrap();
            assert!((26..=34).contains(&tweet.as_object().unwrap().len()));
            english += usize::from(tweet["lang"] == "en");
            kept += usize::from(tweet["lang"] != "en" && tweet["text"].as_str().unwrap().contains(KEYWORD));
            for tag in tweet["entities"]["hashtags"].as_array().unwrap() {
                tags += 1;
                let text: Vec<char> = tweet["text"].as_str().unwrap().chars().collect();
                let at = |i: usize| usize::try_from(tag["indices"][i].as_u64().unwrap()).unwrap();
                let there: String = text[at(0)..at(1)].iter().collect();
                assert_eq!(there, format!("#{}", tag["text"].as_str().unwrap()));
            }
            escaped += usize::from(memchr::memmem::find(&line, br"\ud83d").is_some());
            let ms: u64 = tweet["timestamp_ms"].as_str().unwrap().parse().unwrap();
            let behind = ms - START_MS - i * 1_000 / PER_SECOND;
            assert!(behind < JITTER_MS);
            assert_eq!(tweet["created_at"], Iso(ms).to_string());
        }
        assert!((840..960).contains(&english), "{english} of 2000 are English");
        assert!((2_000..3_200).contains(&tags), "{tags} hashtags");
        assert!(escaped > 20 && kept > 10);
        assert!((1_000..1_900).contains(&(bytes / 2_000)), "{} bytes a tweet", bytes / 2_000);
    }

    #[test]
    fn times_read_as_the_calendar_has_them() {
        assert_eq!(Iso(START_MS).to_string(), "2026-01-01T00:00:00.000Z");
        assert_eq!(Iso(951_782_399_999).to_string(), "2000-02-28T23:59:59.999Z");
        assert_eq!(Iso(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn spellings_of_a_tag_are_one_when_lower_cased() {
        for tag in &Tweets::new(3).tags {
            let [plain, title, loud] = tag.spellings.each_ref().map(|s| s.to_lowercase());
            assert_eq!(plain, title);
            assert!(plain == loud || plain.contains('ß'), "{plain} and {loud}");
        }
    }
}
