//! Labels and annotations of agents and stacks, which match them to each other and agents to work orders, and of
//! templates, which a stack must have too.

use chrono::{DateTime, Utc};
use postgres::types::ToSql;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row::{self, FromColumns};
use crate::db::{DbError, Sql};

/// A table of labels or of annotations of one kind of resource; its rows as the API shows them.
pub trait LabelTable: FromColumns + Serialize {
    /// Returns the rows of resource `$1`.
    const LIST: &'static str;
    /// Adds a row and returns it.
    const ADD: &'static str;
    /// Removes the row of resource `$1` with the label or key `$2`.
    const REMOVE: &'static str;
}

/// Defines a row, and the statements on its table. The names are those of the table, of the column that names the
/// resource, and of the column with the label or key.
macro_rules! label_table {
    (
        $table:ident, $resource:ident, $key:ident, $values:literal;
        $(#[$attribute:meta])*
        pub struct $name:ident $fields:tt
    ) => {
        row! {
            $table = "";
            $(#[$attribute])*
            #[derive(Debug, Serialize, ToSchema)]
            #[allow(missing_docs, reason = "the fields are the API's")]
            pub struct $name $fields
        }

        impl LabelTable for $name {
            const LIST: &'static str = concat!(
                "SELECT ", $table!(), " FROM ", stringify!($table),
                " WHERE ", stringify!($resource), " = $1 ORDER BY created_at, id"
            );
            const ADD: &'static str = concat!(
                "INSERT INTO ", stringify!($table), " ", $values, " RETURNING ", $table!()
            );
            const REMOVE: &'static str = concat!(
                "DELETE FROM ", stringify!($table),
                " WHERE ", stringify!($resource), " = $1 AND ", stringify!($key), " = $2"
            );
        }
    };
}

label_table! {
    agent_labels, agent_id, label, "(agent_id, label) VALUES ($1, $2)";
    /// A label of an agent.
    pub struct AgentLabel {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub label: String,
    }
}

label_table! {
    agent_annotations, agent_id, key, "(agent_id, key, value) VALUES ($1, $2, $3)";
    /// An annotation of an agent. Each key has one value.
    pub struct AgentAnnotation {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub key: String,
        pub value: String,
    }
}

label_table! {
    stack_labels, stack_id, label, "(stack_id, generator_id, label) VALUES ($1, $2, $3)";
    /// A label of a stack.
    pub struct StackLabel {
        pub id: Uuid,
        pub stack_id: Uuid,
        pub label: String,
    }
}

label_table! {
    stack_annotations, stack_id, key, "(stack_id, generator_id, key, value) VALUES ($1, $2, $3, $4)";
    /// An annotation of a stack. Each key has one value.
    pub struct StackAnnotation {
        pub id: Uuid,
        pub stack_id: Uuid,
        pub key: String,
        pub value: String,
    }
}

label_table! {
    template_labels, template_id, label, "(template_id, label) VALUES ($1, $2)";
    /// A label of a template.
    pub struct TemplateLabel {
        pub id: Uuid,
        pub template_id: Uuid,
        pub label: String,
        pub created_at: DateTime<Utc>,
    }
}

label_table! {
    template_annotations, template_id, key, "(template_id, key, value) VALUES ($1, $2, $3)";
    /// An annotation of a template. Each key has one value.
    pub struct TemplateAnnotation {
        pub id: Uuid,
        pub template_id: Uuid,
        pub key: String,
        pub value: String,
        pub created_at: DateTime<Utc>,
    }
}

/// Returns the labels or annotations of a resource, also of a deleted resource.
pub fn list<T: LabelTable>(db: &mut impl Sql, resource: Uuid) -> Result<Vec<T>, DbError> {
    row::all(db, T::LIST, &[&resource])
}

/// Adds a label, or the key and value of an annotation. A stack is named by its id and the id of its generator.
///
/// # Errors
/// When the resource is unknown, or has the label or key already.
pub fn add<T: LabelTable>(
    db: &mut impl Sql,
    resource: &[Uuid],
    texts: &[&str],
) -> Result<T, DbError> {
    let resource = resource.iter().map(|id| id as &(dyn ToSql + Sync));
    let texts = texts.iter().map(|text| text as &(dyn ToSql + Sync));
    row::one(db, T::ADD, &resource.chain(texts).collect::<Vec<_>>())
}

/// Removes a label, or the annotation with this key. Returns false when the resource had none.
pub fn remove<T: LabelTable>(
    db: &mut impl Sql,
    resource: Uuid,
    key: &str,
) -> Result<bool, DbError> {
    Ok(db.execute(T::REMOVE, &[&resource, &key])? > 0)
}

/// The labels and annotations that a template requires and a stack lacks.
#[derive(Debug, Default)]
pub struct Missing {
    /// Missing labels, sorted.
    pub labels: Vec<String>,
    /// Keys and values of missing annotations, sorted by key.
    pub annotations: Vec<(String, String)>,
}

impl Missing {
    /// Returns true when the stack lacks nothing, so the template may be used for it.
    pub fn is_nothing(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// Returns the labels and annotations of a template that a stack lacks.
pub fn missing(db: &mut impl Sql, template: Uuid, stack: Uuid) -> Result<Missing, DbError> {
    const SQL: &str = "\
        SELECT l.label, NULL
          FROM template_labels l
         WHERE l.template_id = $1
           AND NOT EXISTS (SELECT 1 FROM stack_labels s WHERE s.stack_id = $2 AND s.label = l.label)
        UNION ALL
        SELECT a.key, a.value
          FROM template_annotations a
         WHERE a.template_id = $1
           AND NOT EXISTS (SELECT 1 FROM stack_annotations s
                            WHERE s.stack_id = $2 AND s.key = a.key AND s.value = a.value)
         ORDER BY 1";
    let mut missing = Missing::default();
    for (first, value) in row::all::<(String, Option<String>)>(db, SQL, &[&template, &stack])? {
        match value {
            None => missing.labels.push(first),
            Some(value) => missing.annotations.push((first, value)),
        }
    }
    Ok(missing)
}
