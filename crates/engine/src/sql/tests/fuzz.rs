//! Programs that nobody wrote: taken or refused, run or failed, and never a panic.

use super::*;
use crate::{
    mutations::Mutations,
    tries::{first_seed, landed, tries},
};

const PROGRAMS: [&str; 9] = [
    "CREATE VIEW v AS SELECT tag, count(*) AS n, sum(n) AS s, avg(x) AS m FROM posts GROUP BY tag HAVING count(*) > 1 ORDER BY n DESC LIMIT 3",
    "CREATE VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_end",
    "CREATE VIEW v AS SELECT a.tag, b.n FROM posts a JOIN posts b ON a.tag = b.tag AND b.t BETWEEN a.t AND a.t + INTERVAL '5' SECOND",
    "CREATE VIEW v AS SELECT DISTINCT upper(tag) AS tag FROM posts WHERE n IN (1, 2, 3) AND NOT (x > 0.5 OR tag LIKE 'a%')",
    "CREATE VIEW v AS SELECT tag, unnest(words(tag)) AS word FROM (SELECT * FROM posts WHERE n IS NOT NULL) UNION ALL SELECT tag, 'x' FROM posts",
    "CREATE VIEW v AS SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY n DESC) AS place FROM posts) WHERE place <= 2",
    "CREATE VIEW w AS SELECT n % 7 AS k, max(t) AS t FROM posts GROUP BY n % 7; CREATE VIEW v AS SELECT count(*) AS n FROM w",
    "CREATE VIEW v AS SELECT CASE WHEN n > 1 THEN concat(tag, '-', CAST(n AS TEXT)) ELSE substr(tag, 1, 2) END AS c, date_trunc('day', t) AS day FROM posts",
    "CREATE VIEW v AS SELECT bidder, count(*) AS n FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '4' SECOND) GROUP BY tag, window_start, window_end",
];

/// Words that a slip of the hand may put anywhere.
const WORDS: [&str; 24] = [
    "SELECT",
    "FROM",
    "GROUP BY",
    "NULL",
    "*",
    "tag",
    "n",
    "t",
    "posts",
    "INTERVAL '1' SECOND",
    "count(*)",
    "NOT",
    "(SELECT max(n) FROM posts)",
    "DISTINCT",
    "OVER ()",
    "''",
    "-1",
    "9223372036854775807",
    "1e308",
    "CAST(tag AS BIGINT)",
    "window_start",
    "UNION",
    "WITH c AS (SELECT 1 AS a)",
    "\"",
];

#[test]
fn fuzz_sql() {
    let (mut planned, mut ran) = (0, 0);
    for seed in first_seed()..first_seed() + tries(60) {
        let mut mutations = Mutations::new(seed);
        let originals = PROGRAMS.map(str::as_bytes);
        let text = if seed % 3 == 0 {
            String::from_utf8_lossy(&mutations.of(&originals)).into_owned()
        } else {
            let mut words: Vec<&str> = PROGRAMS[mutations.below(PROGRAMS.len())].split(' ').collect();
            for _ in 0..mutations.below(3) {
                let at = mutations.below(words.len());
                match mutations.below(4) {
                    0 => drop(words.remove(at)),
                    1 => words.insert(at, WORDS[mutations.below(WORDS.len())]),
                    2 => words[at] = WORDS[mutations.below(WORDS.len())],
                    _ => {
                        let other = mutations.below(words.len());
                        words.swap(at, other);
                    }
                }
            }
            words.join(" ")
        };
        let mut sql = SqlProgram::new(2);
        sql.queue("posts", vec![vec![rows(&[(1, "a", Some(1)), (2, "b c", None)])], vec![rows(&[(30, "a", Some(3))])]]);
        let ended = sql.start(&format!("{POSTS}{text}")).and_then(|()| {
            planned += 1;
            sql.step()?;
            sql.step()
        });
        match ended {
            Ok(()) => ran += 1,
            Err(error) => {
                let told = error.chain();
                assert!(!told.contains("panicked"), "seed {seed}: {text}\n{told}");
            }
        }
    }
    landed(format_args!("{} programs, {planned} planned, {ran} ran", tries(60)));
    assert!(ran * 10 > tries(60), "hardly any program was worth a try: {planned} planned, {ran} ran");
}
