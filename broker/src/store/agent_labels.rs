//! Labels and annotations of agents, which match them to stacks and work orders.

use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A label of an agent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AgentLabel)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct AgentLabel {
    pub id: Uuid,
    pub agent_id: Uuid,
    pub label: String,
}

/// An annotation of an agent. Each key has one value.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AgentAnnotation)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct AgentAnnotation {
    pub id: Uuid,
    pub agent_id: Uuid,
    pub key: String,
    pub value: String,
}

impl AgentLabel {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            agent_id: row.try_get(1)?,
            label: row.try_get(2)?,
        })
    }
}

impl AgentAnnotation {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            agent_id: row.try_get(1)?,
            key: row.try_get(2)?,
            value: row.try_get(3)?,
        })
    }
}

/// Returns the labels of an agent, also of a deleted agent.
pub fn labels(db: &mut impl Sql, agent: Uuid) -> Result<Vec<AgentLabel>, DbError> {
    const SQL: &str =
        "SELECT id, agent_id, label FROM agent_labels WHERE agent_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&agent])?, AgentLabel::read)
}

/// Adds a label.
///
/// # Errors
/// When the agent is unknown or has the label already.
pub fn add_label(db: &mut impl Sql, agent: Uuid, label: &str) -> Result<AgentLabel, DbError> {
    const SQL: &str =
        "INSERT INTO agent_labels (agent_id, label) VALUES ($1, $2) RETURNING id, agent_id, label";
    AgentLabel::read(&db.query_one(SQL, &[&agent, &label])?)
}

/// Removes a label. Returns false when the agent did not have it.
pub fn remove_label(db: &mut impl Sql, agent: Uuid, label: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM agent_labels WHERE agent_id = $1 AND label = $2";
    Ok(db.execute(SQL, &[&agent, &label])? > 0)
}

/// Returns the annotations of an agent, also of a deleted agent.
pub fn annotations(db: &mut impl Sql, agent: Uuid) -> Result<Vec<AgentAnnotation>, DbError> {
    const SQL: &str = "\
        SELECT id, agent_id, key, value FROM agent_annotations WHERE agent_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&agent])?, AgentAnnotation::read)
}

/// Adds an annotation.
///
/// # Errors
/// When the agent is unknown or has the key already.
pub fn add_annotation(
    db: &mut impl Sql,
    agent: Uuid,
    key: &str,
    value: &str,
) -> Result<AgentAnnotation, DbError> {
    const SQL: &str = "\
        INSERT INTO agent_annotations (agent_id, key, value) VALUES ($1, $2, $3)
        RETURNING id, agent_id, key, value";
    AgentAnnotation::read(&db.query_one(SQL, &[&agent, &key, &value])?)
}

/// Removes the annotation with this key. Returns false when the agent had none.
pub fn remove_annotation(db: &mut impl Sql, agent: Uuid, key: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM agent_annotations WHERE agent_id = $1 AND key = $2";
    Ok(db.execute(SQL, &[&agent, &key])? > 0)
}
