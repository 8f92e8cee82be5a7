//! Access rules that depend only on the principal and the path.

use uuid::Uuid;

use crate::auth::Principal;
use crate::db::Sql;
use crate::error::Error;
use crate::store::generators::Generator;
use crate::store::stacks::{self, Stack};

/// Requires the admin; otherwise 403 `admin_required`.
pub(super) fn admin(principal: Principal) -> Result<(), Error> {
    match principal {
        Principal::Admin => Ok(()),
        _ => Err(Error::forbidden(
            "admin_required",
            "only the admin may do this",
        )),
    }
}

/// Requires the admin or this agent; otherwise 403 `agent_pak_mismatch`.
pub(super) fn admin_or_agent(principal: Principal, agent: Uuid) -> Result<(), Error> {
    match principal {
        Principal::Admin => Ok(()),
        _ => agent_itself(principal, agent),
    }
}

/// Requires this agent, not even the admin; otherwise 403 `agent_pak_mismatch`.
pub(super) fn agent_itself(principal: Principal, agent: Uuid) -> Result<(), Error> {
    if principal == Principal::Agent(agent) {
        return Ok(());
    }
    Err(Error::forbidden(
        "agent_pak_mismatch",
        "only this agent may do this",
    ))
}

/// Requires the admin or this generator; otherwise 403 with this code.
pub(super) fn admin_or_generator(
    principal: Principal,
    generator: Uuid,
    code: &'static str,
) -> Result<(), Error> {
    match principal {
        Principal::Admin => Ok(()),
        Principal::Generator(id) if id == generator => Ok(()),
        _ => Err(Error::forbidden(code, "this belongs to another generator")),
    }
}

/// Returns a live stack that the caller may change: 404 `stack_not_found` comes before 403 `stack_not_owned`.
pub(super) fn owned_stack(
    db: &mut impl Sql,
    principal: Principal,
    id: Uuid,
) -> Result<Stack, Error> {
    owned(principal, stacks::get(db, id)?)
}

/// Same as [`owned_stack`], with the stack locked until the end of the transaction.
pub(super) fn owned_stack_locked(
    db: &mut impl Sql,
    principal: Principal,
    id: Uuid,
) -> Result<Stack, Error> {
    owned(principal, stacks::get_locked(db, id)?)
}

fn owned(principal: Principal, stack: Option<Stack>) -> Result<Stack, Error> {
    let stack = stack.ok_or_else(no_stack)?;
    admin_or_generator(principal, stack.generator_id, "stack_not_owned")?;
    Ok(stack)
}

pub(super) fn no_stack() -> Error {
    Error::not_found("stack_not_found", "there is no such stack")
}

pub(super) fn no_agent() -> Error {
    Error::not_found("agent_not_found", "there is no such agent")
}

pub(super) fn no_generator() -> Error {
    Error::not_found("generator_not_found", "there is no such generator")
}

pub(super) fn no_webhook() -> Error {
    Error::not_found("webhook_not_found", "there is no such webhook subscription")
}

/// Refuses a system generator to callers other than the admin.
pub(super) fn tenant_only(principal: Principal, generator: &Generator) -> Result<(), Error> {
    if generator.is_system && principal != Principal::Admin {
        return Err(system_generator());
    }
    Ok(())
}

pub(super) fn system_generator() -> Error {
    Error::forbidden(
        "system_generator_not_a_tenant",
        "a system generator has no agents of its own",
    )
}
