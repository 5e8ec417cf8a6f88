//! Posts as Arrow columns.
//!
//! Invariant: a declared column is one of [`schema`]'s, of its type or of one
//! that its values fit into (another kind of text or time, fewer members of a
//! struct, in any order); anything else is refused when the stream is declared.
//! Called by the format.

use super::{Network, Post};
use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, ListArray, StringArray, StructArray, TimestampMicrosecondArray,
    builder::{ListBuilder, StringBuilder},
    cast::AsArray,
    new_null_array,
};
use arrow_cast::{can_cast_types, cast};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Block, Error, Result, Timestamp, nearest};

/// The columns of a post.
pub fn schema() -> SchemaRef {
    let texts = || DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let members = |names: &[&str], ty: &DataType| -> Vec<Field> {
        names.iter().map(|name| Field::new(*name, ty.clone(), true)).collect()
    };
    let mut author = members(&["id", "name", "display"], &DataType::Utf8);
    author.push(Field::new("followers", DataType::Int64, true));
    let mut geo = members(&["lat", "lon"], &DataType::Float64);
    geo.push(Field::new("place", DataType::Utf8, true));
    let counts = members(&["replies", "reposts", "likes", "quotes"], &DataType::Int64);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("created_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("source", DataType::Utf8, false),
        Field::new("author", DataType::Struct(author.into()), false),
        Field::new("text", DataType::Utf8, true),
        Field::new("lang", DataType::Utf8, true),
        Field::new("hashtags", texts(), false),
        Field::new("mentions", texts(), false),
        Field::new("urls", texts(), false),
        Field::new("geo", DataType::Struct(geo.into()), true),
        Field::new("counts", DataType::Struct(counts.into()), false),
        Field::new("raw", DataType::Utf8, false),
    ]))
}

/// Refuses columns that no post has.
pub(super) fn check(owner: &str, columns: &Schema) -> Result<()> {
    let ours = schema();
    for field in columns.fields() {
        let Ok(known) = ours.field_with_name(field.name()) else {
            let names: Vec<&str> = ours.fields().iter().map(|f| f.name().as_str()).collect();
            let hint = nearest(field.name(), &names)
                .map_or_else(|| format!("it has {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            return Err(Error::user(format!("{owner}: a post has no column `{}`; {hint}", field.name())));
        };
        if !fits(known.data_type(), field.data_type()) {
            return Err(Error::user(format!(
                "{owner}: column `{}` of a post is {}, which does not fit into {}; leave the columns out to have all of them",
                field.name(),
                known.data_type(),
                field.data_type()
            )));
        }
    }
    Ok(())
}

fn fits(ours: &DataType, declared: &DataType) -> bool {
    match (ours, declared) {
        (DataType::Struct(ours), DataType::Struct(declared)) => declared.iter().all(|field| {
            let known = ours.iter().find(|known| known.name() == field.name());
            field.is_nullable() && known.is_some_and(|known| fits(known.data_type(), field.data_type()))
        }),
        (DataType::List(ours), DataType::List(declared)) => {
            declared.is_nullable() && fits(ours.data_type(), declared.data_type())
        }
        (DataType::Utf8, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => true,
        (DataType::Timestamp(..), DataType::Timestamp(unit, _)) => *unit != TimeUnit::Nanosecond,
        (ours, declared) => ours == declared && can_cast_types(ours, declared),
    }
}

/// Whether the post has nothing for a column that could be declared NOT NULL.
pub(super) fn is_missing(post: &Post, column: &str) -> bool {
    match column {
        "created_at" => post.created_at.is_none(),
        "text" => post.text.is_none(),
        "lang" => post.lang.is_none(),
        "geo" => post.geo.point.is_none() && post.geo.place.is_none(),
        _ => false,
    }
}

/// One column of the posts, which come with their rows in the block.
pub(super) fn column(field: &Field, posts: &[(Post, usize)], network: Network, block: &Block) -> Result<ArrayRef> {
    let posts_only = || posts.iter().map(|(post, _)| post);
    let texts =
        |get: fn(&Post) -> Option<&str>| -> ArrayRef { Arc::new(posts_only().map(get).collect::<StringArray>()) };
    let numbers =
        |get: fn(&Post) -> Option<i64>| -> ArrayRef { Arc::new(posts_only().map(get).collect::<Int64Array>()) };
    let floats =
        |get: fn(&Post) -> Option<f64>| -> ArrayRef { Arc::new(posts_only().map(get).collect::<Float64Array>()) };
    let ours = schema();
    let known = ours.field_with_name(field.name()).map_err(|e| Error::internal("a column of a post").because(e))?;
    let members = |arrays: Vec<ArrayRef>, nulls| -> Result<ArrayRef> {
        let DataType::Struct(fields) = known.data_type() else { return Err(Error::internal("a struct of a post")) };
        Ok(Arc::new(StructArray::try_new(fields.clone(), arrays, nulls).map_err(broken)?))
    };
    let array: ArrayRef = match field.name().as_str() {
        "id" => texts(|p| Some(&p.id)),
        "kind" => texts(|p| Some(p.kind.name())),
        "created_at" => {
            let times =
                posts_only().map(|p| p.created_at.map(|Timestamp(at)| at)).collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone("UTC"))
        }
        "source" => Arc::new(StringArray::from_iter_values(posts.iter().map(|_| network.name()))),
        "author" => members(
            vec![
                texts(|p| p.author.id.as_deref()),
                texts(|p| p.author.name.as_deref()),
                texts(|p| p.author.display.as_deref()),
                numbers(|p| p.author.followers),
            ],
            None,
        )?,
        "text" => texts(|p| p.text.as_deref()),
        "lang" => texts(|p| p.lang.as_deref()),
        "hashtags" => lists(posts_only().map(|p| &p.hashtags[..])),
        "mentions" => lists(posts_only().map(|p| &p.mentions[..])),
        "urls" => lists(posts_only().map(|p| &p.urls[..])),
        "geo" => {
            let there: Vec<bool> = posts_only().map(|p| !is_missing(p, "geo")).collect();
            members(
                vec![
                    floats(|p| p.geo.point.map(|(lat, _)| lat)),
                    floats(|p| p.geo.point.map(|(_, lon)| lon)),
                    texts(|p| p.geo.place.as_deref()),
                ],
                Some(there.into()),
            )?
        }
        "counts" => members(
            vec![
                numbers(|p| p.counts.replies),
                numbers(|p| p.counts.reposts),
                numbers(|p| p.counts.likes),
                numbers(|p| p.counts.quotes),
            ],
            None,
        )?,
        // The mapper has read it as JSON, so it is UTF-8.
        "raw" => {
            Arc::new(posts.iter().map(|(_, row)| std::str::from_utf8(block.record(*row)).ok()).collect::<StringArray>())
        }
        other => return Err(Error::internal(format!("a post has no column `{other}`"))),
    };
    conform(&array, field.data_type())
}

fn lists<'a>(values: impl Iterator<Item = &'a [String]>) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for list in values {
        builder.append_value(list.iter().map(Some));
    }
    Arc::new(builder.finish())
}

/// The array as the declared type, which it fits.
fn conform(array: &ArrayRef, declared: &DataType) -> Result<ArrayRef> {
    match declared {
        ty if ty == array.data_type() => Ok(Arc::clone(array)),
        DataType::Struct(fields) => {
            let from = array.as_struct();
            let children = fields
                .iter()
                .map(|field| match from.column_by_name(field.name()) {
                    Some(child) => conform(child, field.data_type()),
                    None => Ok(new_null_array(field.data_type(), array.len())),
                })
                .collect::<Result<Vec<_>>>()?;
            let made =
                StructArray::try_new_with_length(Fields::clone(fields), children, from.nulls().cloned(), array.len());
            Ok(Arc::new(made.map_err(broken)?))
        }
        DataType::List(item) => {
            let from = array.as_list::<i32>();
            let items = conform(from.values(), item.data_type())?;
            let made = ListArray::try_new(Arc::clone(item), from.offsets().clone(), items, from.nulls().cloned());
            Ok(Arc::new(made.map_err(broken)?))
        }
        ty => cast(array, ty).map_err(broken),
    }
}

fn broken(error: arrow_schema::ArrowError) -> Error {
    Error::internal("columns of posts don't fit together").because(error)
}
