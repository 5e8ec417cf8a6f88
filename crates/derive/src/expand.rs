//! The code of the two derives.
//!
//! ```text
//! Post { text, likes }   owned      user functions return it
//! PostRef<'_>            borrowed   user functions receive it
//! Columns, Builders      one Arrow column a field, private to the expansion
//! ```

use crate::input::{Field, Input};
use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::Type;

/// The parts that all methods are made of.
struct Parts<'a> {
    names: Vec<&'a syn::Ident>,
    kinds: Vec<&'a Type>,
}

impl<'a> Parts<'a> {
    fn of(fields: &'a [Field]) -> Self {
        Self { names: fields.iter().map(|f| &f.name).collect(), kinds: fields.iter().map(|f| &f.kind).collect() }
    }
}

pub(crate) fn record(input: &Input) -> TokenStream {
    let Input { name, visibility, krate, fields } = input;
    let Parts { names, kinds } = Parts::of(fields);
    let visibilities = fields.iter().map(|f| &f.visibility);
    let columns: Vec<_> = fields.iter().map(|f| &f.column).collect();
    let places: Vec<usize> = (0..fields.len()).collect();
    let borrowed = input.borrowed();
    let support = quote!(#krate::record_support);
    let docs = format!("A [`{name}`] borrowed from a column or an owned one.");
    let field_docs = columns.iter().map(|column| format!("Column `{}`.", column.value()));
    let (column_struct, builder_struct) = (format_ident!("{name}Columns"), format_ident!("{name}Builders"));
    quote! {
        #[doc = #docs]
        #[derive(Debug, Clone, Copy)]
        #[automatically_derived]
        #visibility struct #borrowed<'a> {
            #(
                #[doc = #field_docs]
                #visibilities #names: <#kinds as #support::Record>::Ref<'a>,
            )*
        }

        const _: () = {
            use #support as support;

            #[doc(hidden)]
            #[derive(Clone)]
            #[allow(unreachable_pub, missing_debug_implementations)]
            pub struct #column_struct {
                #(#names: <#kinds as support::Record>::Column,)*
            }

            #[doc(hidden)]
            #[allow(unreachable_pub, missing_debug_implementations)]
            pub struct #builder_struct {
                #(#names: <#kinds as support::Record>::Builder,)*
            }

            #[automatically_derived]
            impl support::Record for #name {
                type Ref<'a> = #borrowed<'a>;
                type Column = #column_struct;
                type Builder = #builder_struct;

                fn data_type() -> support::DataType {
                    support::struct_type([#(
                        (#columns, <#kinds as support::Record>::data_type(), <#kinds as support::Record>::nullable()),
                    )*])
                }
                fn column(array: &support::ArrayRef) -> support::Result<Self::Column> {
                    let columns = support::columns_of(array, stringify!(#name), [#(#columns),*])?;
                    Ok(#column_struct {
                        #(#names: support::column_named::<#kinds>(&columns[#places], #columns)?,)*
                    })
                }
                #[inline]
                fn get(column: &Self::Column, row: usize) -> Self::Ref<'_> {
                    #borrowed { #(#names: <#kinds as support::Record>::get(&column.#names, row),)* }
                }
                #[inline]
                fn borrow(&self) -> Self::Ref<'_> {
                    #borrowed { #(#names: <#kinds as support::Record>::borrow(&self.#names),)* }
                }
                #[inline]
                fn own(value: Self::Ref<'_>) -> Self {
                    Self { #(#names: <#kinds as support::Record>::own(value.#names),)* }
                }
                fn builder(capacity: usize) -> Self::Builder {
                    #builder_struct { #(#names: <#kinds as support::Record>::builder(capacity),)* }
                }
                #[inline]
                fn append(builder: &mut Self::Builder, value: Self::Ref<'_>) {
                    #(<#kinds as support::Record>::append(&mut builder.#names, value.#names);)*
                }
                fn finish(builder: &mut Self::Builder) -> support::ArrayRef {
                    let columns = [#(<#kinds as support::Record>::finish(&mut builder.#names)),*];
                    support::struct_array(&<Self as support::Record>::data_type(), columns)
                }
            }
        };
    }
}

pub(crate) fn key(input: &Input) -> TokenStream {
    let Input { name, krate, fields, .. } = input;
    let Parts { names, kinds } = Parts::of(fields);
    quote! {
        const _: () = {
            use #krate::record_support as support;

            #[automatically_derived]
            impl support::Key for #name {
                #[inline]
                fn hash<H: ::core::hash::Hasher>(value: <Self as support::Record>::Ref<'_>, state: &mut H) {
                    #(<#kinds as support::Key>::hash(value.#names, state);)*
                }
                #[inline]
                fn same(a: <Self as support::Record>::Ref<'_>, b: <Self as support::Record>::Ref<'_>) -> bool {
                    #(<#kinds as support::Key>::same(a.#names, b.#names))&&*
                }
            }
        };
    }
}
