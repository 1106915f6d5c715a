//! What is searched: for each kind its fields, the texts that passages are taken from, and how its words are found.

use crate::store::filter::{Field, FieldKind};
use crate::store::list::Listing;
use crate::store::{analysis, chunk, claim, decision, document, precedent};

/// What search knows of a kind.
#[derive(Debug)]
pub struct Kind {
    pub listing: &'static Listing,
    /// Fields that are shown, beside those of the listing.
    pub more: &'static [Field],
    /// What passages are taken from, most telling first: text over the alias `d`.
    pub texts: &'static [&'static str],
    /// What `search` is generated from, for a version that is in the log only. But for the name of the tenant it is the
    /// same, and a test sees to that. The tenant's lexeme is in it, too, because it adds to the length.
    pub vector: &'static str,
}

impl Kind {
    pub fn name(&self) -> &'static str {
        self.listing.kind
    }

    /// A field that can be shown.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        Field::find(self.listing.fields, name).or_else(|| Field::find(self.more, name))
    }

    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.listing.fields.iter().chain(self.more)
    }
}

/// The kind of that name, if it is searched.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name() == name)
}

pub static KINDS: &[Kind] = &[
    Kind {
        listing: &decision::LISTING,
        more: &[
            Field::new("reason", "d.reason", FieldKind::Text),
            Field::new("input_data", "d.input_data", FieldKind::Json),
        ],
        texts: &["d.reason", "d.final_verdict"],
        vector: "setweight(to_tsvector('pg_catalog.english', translate(d.reason, '@_/\\.<-', '       ')), 'A') \
                 || setweight(to_tsvector('pg_catalog.english', translate(d.final_verdict, '_', ' ')), 'B') \
                 || array_to_tsvector(ARRAY['tenant:'])",
    },
    Kind {
        listing: &claim::LISTING,
        more: &[Field::new("content", "d.content", FieldKind::Text)],
        texts: &["d.content", "d.claim_type || ' ' || d.source", "d.metadata::text"],
        vector: "search_vector('', d.content, d.claim_type || ' ' || d.source, d.metadata::text)",
    },
    Kind {
        listing: &precedent::LISTING,
        more: &[
            Field::new("summary", "d.summary", FieldKind::Text),
            Field::new("final_reason", "d.final_reason", FieldKind::Text),
            Field::new("context", "d.context", FieldKind::Text),
            Field::new("input", "d.input", FieldKind::Json),
        ],
        texts: &["d.summary", "d.final_reason", "d.context", "d.tags::text", "d.input::text"],
        vector: "search_vector('', d.summary, d.final_reason || ' ' || d.context, \
                 d.tags::text || ' ' || d.input::text)",
    },
    Kind {
        listing: &document::LISTING,
        more: &[],
        texts: &["d.filename", "d.original_filename", "d.source_path", "d.metadata::text"],
        vector: "search_vector('', d.filename, d.original_filename || ' ' || d.source_path, d.metadata::text)",
    },
    Kind {
        listing: &chunk::LISTING,
        more: &[Field::new("text", "d.text", FieldKind::Text)],
        texts: &["d.text", "d.metadata::text"],
        vector: "search_vector('', d.text, '', d.metadata::text)",
    },
    Kind {
        listing: &analysis::LISTING,
        more: &[
            Field::new("summary", "d.summary", FieldKind::Text),
            Field::new("raw_response", "d.raw_response", FieldKind::Json),
        ],
        texts: &["d.summary", "d.category", "d.tags::text", "d.raw_response::text"],
        vector: "search_vector('', d.summary || ' ' || d.category, d.tags::text, d.raw_response::text)",
    },
];
