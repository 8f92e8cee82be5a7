//! Labels and annotations of agents, stacks and templates. Each kind of resource has its own rules and refusals.

use axum::Router;
use axum::routing::{delete, get};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{
    Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound, Unstorable,
};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, notifications, templates, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::error::Error;
use crate::store::labels::{
    self, AgentAnnotation, AgentLabel, LabelTable, StackAnnotation, StackLabel, TemplateAnnotation,
    TemplateLabel,
};
use crate::store::stack_matching;
use crate::store::stacks::{self, Stack};
use crate::store::templates::Template;

/// Defines the operations on the labels or annotations of one kind of resource, with their routes and documentation.
///
/// After the words for paths and messages come the body of an addition (and its schema), the row, the 404 of an unknown
/// resource if there is one, and the callers.
macro_rules! operations {
    (
        $module:ident: $owner:literal, $entry:literal, $key:tt, $absent:literal, tag $tag:literal,
        $body:ident ($schema:ident) => $row:ident, unknown ($($unknown:ident)?),
        read by ($($reader:literal),+), changed by ($($writer:literal),+)
        $(, #[doc = $add_doc:literal])?
    ) => {
        mod $module {
            use crate::api::labels::*;

            pub(super) fn routes() -> Router<App> {
                Router::new()
                    .route(
                        concat!("/", $owner, "s/{id}/", $entry, "s"),
                        get(plain(list)).post(with_body(add)),
                    )
                    .route(
                        concat!("/", $owner, "s/{id}/", $entry, "s/{", $key, "}"),
                        delete(plain(remove)),
                    )
            }

            #[utoipa::path(
                get, path = concat!("/", $owner, "s/{id}/", $entry, "s"),
                operation_id = concat!($owner, "s_list_", $entry, "s"), tag = $tag,
                params(("id" = Uuid, Path)),
                responses(
                    (status = 200, description = concat!("The ", $owner, "'s ", $entry, "s"), body = [$row]),
                    Always, BadRequest, Forbidden, $($unknown)?
                ),
                security($(($reader = [])),+),
            )]
            pub(super) fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
                crate::api::labels::list::<$body>(call, db)
            }

            $(#[doc = $add_doc])?
            #[utoipa::path(
                post, path = concat!("/", $owner, "s/{id}/", $entry, "s"),
                operation_id = concat!($owner, "s_add_", $entry), tag = $tag,
                params(("id" = Uuid, Path)),
                request_body(content = $schema, content_type = "application/json"),
                responses(
                    (status = 201, description = concat!("The ", $entry), body = $row),
                    Always, JsonBody, Forbidden, Conflict, $($unknown)?
                ),
                security($(($writer = [])),+),
            )]
            pub(super) fn add(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
                crate::api::labels::add::<$body>(call, db)
            }

            #[utoipa::path(
                delete, path = concat!("/", $owner, "s/{id}/", $entry, "s/{", $key, "}"),
                operation_id = concat!($owner, "s_remove_", $entry), tag = $tag,
                params(("id" = Uuid, Path), ($key = String, Path)),
                responses(
                    (status = 204, description = "It is gone"),
                    Always, BadRequest, Forbidden, NotFound, Unstorable,
                ),
                security($(($writer = [])),+),
            )]
            pub(super) fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
                if crate::api::labels::remove::<$body>(call, db, $key)? {
                    return Ok(Reply::no_content());
                }
                Err(Error::not_found(
                    concat!($owner, "_", $entry, "_not_found"),
                    concat!("the ", $owner, " has no ", $absent),
                ))
            }
        }
    };
}

operations! {
    agent_labels: "agent", "label", "label", "such label", tag "agent-labels",
    NewAgentLabel (NewAgentLabel) => AgentLabel, unknown (),
    read by ("admin_pak", "agent_pak"), changed by ("admin_pak")
}
operations! {
    agent_annotations: "agent", "annotation", "key", "annotation with this key", tag "agent-annotations",
    NewAgentAnnotation (NewAgentAnnotation) => AgentAnnotation, unknown (),
    read by ("admin_pak", "agent_pak"), changed by ("admin_pak")
}
operations! {
    stack_labels: "stack", "label", "label", "such label", tag "stacks",
    NewStackLabel (String) => StackLabel, unknown (NotFound),
    read by ("admin_pak", "generator_pak", "agent_pak"), changed by ("admin_pak", "generator_pak"),
    #[doc = "Takes a JSON string as the body."]
}
operations! {
    stack_annotations: "stack", "annotation", "key", "annotation with this key", tag "stacks",
    NewStackAnnotation (NewStackAnnotation) => StackAnnotation, unknown (NotFound),
    read by ("admin_pak", "generator_pak", "agent_pak"), changed by ("admin_pak", "generator_pak")
}
operations! {
    template_labels: "template", "label", "label", "such label", tag "templates",
    NewTemplateLabel (String) => TemplateLabel, unknown (NotFound),
    read by ("admin_pak", "generator_pak"), changed by ("admin_pak", "generator_pak"),
    #[doc = "Takes a JSON string as the body."]
}
operations! {
    template_annotations: "template", "annotation", "key", "annotation with this key", tag "templates",
    AddAnnotationRequest (AddAnnotationRequest) => TemplateAnnotation, unknown (NotFound),
    read by ("admin_pak", "generator_pak"), changed by ("admin_pak", "generator_pak")
}

pub(super) fn routes() -> Router<App> {
    Router::new()
        .merge(agent_labels::routes())
        .merge(agent_annotations::routes())
        .merge(stack_labels::routes())
        .merge(stack_annotations::routes())
        .merge(template_labels::routes())
        .merge(template_annotations::routes())
}

#[derive(OpenApi)]
#[openapi(paths(
    agent_labels::list,
    agent_labels::add,
    agent_labels::remove,
    agent_annotations::list,
    agent_annotations::add,
    agent_annotations::remove,
    stack_labels::list,
    stack_labels::add,
    stack_labels::remove,
    stack_annotations::list,
    stack_annotations::add,
    stack_annotations::remove,
    template_labels::list,
    template_labels::add,
    template_labels::remove,
    template_annotations::list,
    template_annotations::add,
    template_annotations::remove
))]
pub(super) struct Doc;

/// A resource that has labels and annotations.
trait Labelled: Sized {
    /// Refuses a caller that may not see the labels and annotations.
    fn visible(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<(), Error>;

    /// Returns the resource; refuses a caller that may not change the labels and annotations.
    fn owned(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<Self, Error>;

    /// Returns the ids that a new row has of its resource.
    fn ids(&self) -> Vec<Uuid>;

    /// Returns the agents that a change of the labels concerns.
    fn concerned(&self, _: &ApiRequest, _: &mut Conn) -> Vec<Uuid> {
        Vec::new()
    }

    /// Tells these agents of a change, as far as they are connected.
    fn tell(&self, _: &ApiRequest, _: &[Uuid]) {}
}

/// The body of a request that adds a label or an annotation.
trait NewEntry: DeserializeOwned {
    type Owner: Labelled;
    type Row: LabelTable;

    /// Returns the texts to store: a label, or a key and its value. Refuses invalid texts, and a body that names another
    /// resource than the path.
    fn checked(&self, path: Uuid) -> Result<Vec<&str>, Error>;
}

fn list<B: NewEntry>(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    B::Owner::visible(call, db, id)?;
    Reply::ok(&labels::list::<B::Row>(db, id)?)
}

fn add<B: NewEntry>(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: B = call.json()?;
    let owner = B::Owner::owned(call, db, id)?;
    let texts = new.checked(id)?;
    let added: B::Row = labels::add(db, &owner.ids(), &texts)?;
    let concerned = owner.concerned(call, db);
    owner.tell(call, &concerned);
    Reply::created(&added)
}

/// Returns false when the resource has no such label or annotation.
fn remove<B: NewEntry>(call: &ApiRequest, db: &mut Conn, name: &str) -> Result<bool, Error> {
    let (id, key) = (call.id()?, call.path(name)?);
    let owner = B::Owner::owned(call, db, id)?;
    validation::no_nul(&format!("the {name}"), key)?;
    // The agents that serve a stack through this label are known only before its removal.
    let concerned = owner.concerned(call, db);
    let removed = labels::remove::<B::Row>(db, id, key)?;
    if removed {
        owner.tell(call, &concerned);
    }
    Ok(removed)
}

/// The id of an agent, which may be unknown: the foreign key refuses labels of an agent that does not exist.
struct AgentId(Uuid);

impl Labelled for AgentId {
    fn visible(call: &ApiRequest, _: &mut Conn, id: Uuid) -> Result<(), Error> {
        authorization::admin_or_agent(call.principal, id)
    }

    fn owned(call: &ApiRequest, _: &mut Conn, id: Uuid) -> Result<Self, Error> {
        authorization::admin(call.principal).map(|()| Self(id))
    }

    fn ids(&self) -> Vec<Uuid> {
        vec![self.0]
    }

    fn concerned(&self, _: &ApiRequest, _: &mut Conn) -> Vec<Uuid> {
        vec![self.0]
    }

    fn tell(&self, call: &ApiRequest, agents: &[Uuid]) {
        for agent in agents {
            notifications::target_changed(call, *agent);
        }
    }
}

impl Labelled for Stack {
    /// Requires a caller that may see the stack: the admin (also for unknown stacks), the owner, or an agent that
    /// serves it.
    fn visible(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<(), Error> {
        if call.principal == Principal::Admin {
            return Ok(());
        }
        let stack = stacks::get(db, id)?.ok_or_else(authorization::no_stack)?;
        let allowed = match call.principal {
            Principal::Admin => true,
            Principal::Generator(generator) => generator == stack.generator_id,
            Principal::Agent(agent) => stack_matching::serves(db, agent, id)?,
        };
        if allowed {
            return Ok(());
        }
        Err(Error::forbidden(
            "stack_not_accessible",
            "this stack is not the caller's to see",
        ))
    }

    fn owned(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<Self, Error> {
        authorization::owned_stack(db, call.principal, id)
    }

    fn ids(&self) -> Vec<Uuid> {
        vec![self.id, self.generator_id]
    }

    fn concerned(&self, call: &ApiRequest, db: &mut Conn) -> Vec<Uuid> {
        notifications::who_serves(call, db, self.id)
    }

    fn tell(&self, call: &ApiRequest, agents: &[Uuid]) {
        notifications::tell(call, agents, self);
    }
}

impl Labelled for Template {
    fn visible(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<(), Error> {
        templates::readable(db, call.principal, id).map(|_| ())
    }

    fn owned(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<Self, Error> {
        templates::owned(db, call.principal, id)
    }

    fn ids(&self) -> Vec<Uuid> {
        vec![self.id]
    }
}

/// Refuses with 400 `agent_id_mismatch` when body and path name different agents.
pub(super) fn same_agent(path: Uuid, body: Uuid) -> Result<(), Error> {
    if path == body {
        return Ok(());
    }
    Err(Error::bad_request(
        "agent_id_mismatch",
        "`agent_id` in the body is not the agent in the path",
    ))
}

#[derive(Deserialize, ToSchema)]
struct NewAgentLabel {
    agent_id: Uuid,
    label: String,
}

impl NewEntry for NewAgentLabel {
    type Owner = AgentId;
    type Row = AgentLabel;

    fn checked(&self, path: Uuid) -> Result<Vec<&str>, Error> {
        same_agent(path, self.agent_id)?;
        validation::label(&self.label)?;
        validation::storable("a label", &self.label, validation::MARK)?;
        Ok(vec![&self.label])
    }
}

#[derive(Deserialize, ToSchema)]
struct NewAgentAnnotation {
    agent_id: Uuid,
    key: String,
    value: String,
}

impl NewEntry for NewAgentAnnotation {
    type Owner = AgentId;
    type Row = AgentAnnotation;

    fn checked(&self, path: Uuid) -> Result<Vec<&str>, Error> {
        same_agent(path, self.agent_id)?;
        validation::annotation(&self.key, &self.value)?;
        Ok(vec![&self.key, &self.value])
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct NewStackLabel(String);

impl NewEntry for NewStackLabel {
    type Owner = Stack;
    type Row = StackLabel;

    fn checked(&self, _: Uuid) -> Result<Vec<&str>, Error> {
        validation::short_word("a label", &self.0, "invalid_label")?;
        Ok(vec![&self.0])
    }
}

#[derive(Deserialize, ToSchema)]
struct NewStackAnnotation {
    stack_id: Uuid,
    key: String,
    value: String,
}

impl NewEntry for NewStackAnnotation {
    type Owner = Stack;
    type Row = StackAnnotation;

    fn checked(&self, path: Uuid) -> Result<Vec<&str>, Error> {
        if self.stack_id != path {
            return Err(Error::bad_request(
                "stack_id_mismatch",
                "`stack_id` in the body is not the stack in the path",
            ));
        }
        validation::annotation(&self.key, &self.value)?;
        Ok(vec![&self.key, &self.value])
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct NewTemplateLabel(String);

impl NewEntry for NewTemplateLabel {
    type Owner = Template;
    type Row = TemplateLabel;

    fn checked(&self, _: Uuid) -> Result<Vec<&str>, Error> {
        validation::short_word("a label", &self.0, "invalid_label")?;
        Ok(vec![&self.0])
    }
}

#[derive(Deserialize, ToSchema)]
struct AddAnnotationRequest {
    key: String,
    value: String,
}

impl NewEntry for AddAnnotationRequest {
    type Owner = Template;
    type Row = TemplateAnnotation;

    fn checked(&self, _: Uuid) -> Result<Vec<&str>, Error> {
        // Unlike a stack's annotation, a template's annotation must not have an empty value.
        validation::short_word("`key`", &self.key, "invalid_annotation")?;
        validation::short_word("`value`", &self.value, "invalid_annotation")?;
        Ok(vec![&self.key, &self.value])
    }
}
