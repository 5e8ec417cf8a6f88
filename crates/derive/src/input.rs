//! What a derive may be put on, read once with errors that point at the place.
//!
//! Invariant: what [`Input::of`] accepts, `expand` turns into code that
//! compiles if the fields' types are records. Called by both derives.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{
    Attribute, Data, DeriveInput, Error, Fields, Ident, LitStr, Path, Result, Type, Visibility, ext::IdentExt,
    spanned::Spanned,
};

/// A struct with named fields.
pub(crate) struct Input {
    pub(crate) name: Ident,
    pub(crate) visibility: Visibility,
    /// Path of the crate that has `record_support`.
    pub(crate) krate: TokenStream,
    pub(crate) fields: Vec<Field>,
}

pub(crate) struct Field {
    pub(crate) name: Ident,
    pub(crate) visibility: Visibility,
    pub(crate) kind: Type,
    /// Name of its column.
    pub(crate) column: LitStr,
}

impl Input {
    pub(crate) fn of(item: &DeriveInput, what: &str) -> Result<Self> {
        let Data::Struct(data) = &item.data else {
            return Err(Error::new(
                item.ident.span(),
                format!(
                    "{what} can be derived for structs only; a stream of an enum's cases can carry a struct with Option fields"
                ),
            ));
        };
        if !item.generics.params.is_empty() {
            return Err(Error::new(
                item.generics.span(),
                format!(
                    "{what} can't be derived for a generic struct: a record's columns have fixed types; take a struct for each"
                ),
            ));
        }
        let Fields::Named(named) = &data.fields else {
            return Err(Error::new(
                item.ident.span(),
                format!("{what} needs named fields: they name the columns; a tuple is a record without a derive"),
            ));
        };
        if named.named.is_empty() {
            return Err(Error::new(
                item.ident.span(),
                format!("{what} needs at least one field; `()` is an empty record"),
            ));
        }
        let mut krate = quote!(::tidemill);
        attributes(&item.attrs, |key, value| {
            if key != "crate" {
                return Err(Error::new(key.span(), "on a struct, `record` takes `crate = \"…\"`"));
            }
            let path: Path = value.parse()?;
            krate = quote!(#path);
            Ok(())
        })?;
        let mut fields: Vec<Field> = Vec::new();
        for field in &named.named {
            let Some(name) = field.ident.clone() else { continue };
            let mut column = LitStr::new(&name.unraw().to_string(), name.span());
            attributes(&field.attrs, |key, value| {
                if key != "rename" {
                    return Err(Error::new(key.span(), "on a field, `record` takes `rename = \"…\"`"));
                }
                if value.value().is_empty() {
                    return Err(Error::new(value.span(), "a column needs a name"));
                }
                column = value;
                Ok(())
            })?;
            if fields.iter().any(|other| other.column.value() == column.value()) {
                return Err(Error::new(column.span(), format!("two columns would be named `{}`", column.value())));
            }
            fields.push(Field { name, visibility: field.vis.clone(), kind: field.ty.clone(), column });
        }
        Ok(Self { name: item.ident.clone(), visibility: item.vis.clone(), krate, fields })
    }

    /// Name of the borrowed form.
    pub(crate) fn borrowed(&self) -> Ident {
        Ident::new(&format!("{}Ref", self.name.unraw()), self.name.span().resolved_at(Span::call_site()))
    }
}

/// Calls `take` with each `key = "value"` in `#[record(…)]`.
fn attributes(attributes: &[Attribute], mut take: impl FnMut(Ident, LitStr) -> Result<()>) -> Result<()> {
    for attribute in attributes.iter().filter(|a| a.path().is_ident("record")) {
        attribute.parse_args_with(|input: syn::parse::ParseStream<'_>| {
            while !input.is_empty() {
                // `crate` is a keyword.
                let key = Ident::parse_any(input)?;
                input.parse::<syn::Token![=]>()?;
                take(key, input.parse()?)?;
                if !input.is_empty() {
                    input.parse::<syn::Token![,]>()?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: &str) -> String {
        let item: DeriveInput = syn::parse_str(item).unwrap();
        Input::of(&item, "Record").err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_can_not_be_a_record_says_why() {
        for (item, why) in [
            ("enum A { B }", "structs only"),
            ("struct A<T> { t: T }", "generic"),
            ("struct A(i64);", "named fields"),
            ("struct A {}", "at least one field"),
            ("struct A { #[record(name = \"b\")] a: i64 }", "rename"),
            ("struct A { #[record(rename = \"\")] a: i64 }", "needs a name"),
            ("struct A { a: i64, #[record(rename = \"a\")] b: i64 }", "two columns"),
            ("#[record(rename = \"b\")] struct A { a: i64 }", "crate"),
        ] {
            assert!(refusal(item).contains(why), "{item}: {}", refusal(item));
        }
    }

    #[test]
    fn names_are_those_of_the_fields_or_given() {
        let item = syn::parse_str("struct A { r#type: i64, #[record(rename = \"x y\",)] b: i64 }").unwrap();
        let input = Input::of(&item, "Record").unwrap();
        assert_eq!(input.fields.iter().map(|f| f.column.value()).collect::<Vec<_>>(), ["type", "x y"]);
        assert_eq!(input.borrowed().to_string(), "ARef");
    }
}
