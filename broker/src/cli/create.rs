//! `create`: creates an agent or a generator and prints its PAK once.

use std::fmt::Write;

use clap::Subcommand;
use uuid::Uuid;

use super::exit::{failed, lost, mint, refused, uuid, wrong};
use super::output::{Stream, one_line, say};
use crate::config::Instance;
use crate::db::{CliConnection, DbError, Tx};
use crate::domain::provisioning::{self, Caller, ProvisioningError};
use crate::http::ServeError;
use crate::store::{agents, generators, registrations};

/// Largest number of characters in a name.
const NAME: usize = 255;

/// Kinds of principal that can be created.
#[derive(Subcommand)]
pub(super) enum CreateTarget {
    /// An agent, registered with the system generator and the given generators
    Agent {
        /// Its name, unique within the cluster
        #[arg(long)]
        name: String,
        /// Cluster that the agent works in
        #[arg(long)]
        cluster_name: String,
        /// Generators to register the agent with, separated by commas
        #[arg(long, value_name = "ID", value_delimiter = ',')]
        generator_ids: Vec<String>,
    },
    /// A generator
    Generator {
        /// Its name
        #[arg(long)]
        name: String,
        /// Its description
        #[arg(long)]
        description: Option<String>,
    },
}

pub(super) fn run(instance: &Instance, what: &CreateTarget) -> Result<(), ServeError> {
    match what {
        CreateTarget::Agent {
            name,
            cluster_name,
            generator_ids,
        } => agent(instance, name, cluster_name, generator_ids),
        CreateTarget::Generator { name, description } => {
            generator(instance, name, description.as_deref())
        }
    }
}

fn agent(
    instance: &Instance,
    name: &str,
    cluster: &str,
    generator_ids: &[String],
) -> Result<(), ServeError> {
    valid(instance, "--name", name)?;
    valid(instance, "--cluster-name", cluster)?;
    let wanted: Vec<Uuid> = generator_ids
        .iter()
        .filter(|id| !id.trim().is_empty())
        .map(|id| uuid(instance, "--generator-ids", id))
        .collect::<Result<_, _>>()?;
    let pak = mint(instance)?;
    let mut db = CliConnection::open(&instance.plan()).map_err(|error| failed(instance, error))?;
    let made = db.transaction(|tx| {
        let agent =
            provisioning::agent(tx, Caller::Command, (name, cluster), &wanted, &pak.hash())?;
        let system = generators::system(tx)?.map(|generator| generator.id);
        let with = registrations::of_agent(tx, agent.id)?;
        let mut with: Vec<Uuid> = with.iter().map(|r| r.generator_id).collect();
        // The system generator comes first, then the generators in the order of the flag.
        with.sort_by_key(|id| (Some(*id) != system, wanted.iter().position(|w| w == id)));
        Ok::<_, ProvisioningError>((agent, system, with))
    });
    let (agent, system, with) = made.map_err(|refusal| {
        taken(instance, &mut db, refusal, "unique_agent_cluster", |tx| {
            let agent = agents::find(tx, name, cluster)?;
            Ok(agent.map(|a| {
                format!(
                    "an agent of that name in that cluster exists already: {}",
                    a.id
                )
            }))
        })
    })?;
    if system.is_none() {
        let warning = "Warning: there is no system generator before the broker's first start; it will register the agent then\n";
        say(Stream::Err, warning)?;
    }
    let with: Vec<String> = with
        .iter()
        .map(|id| match Some(*id) == system {
            true => "system (fleet scope)".to_owned(),
            false => id.to_string(),
        })
        .collect();
    let mut text = String::from("Agent created successfully:\n");
    // Writing to a String does not fail.
    let _ = writeln!(text, "ID: {}", agent.id);
    let _ = writeln!(text, "Name: {}", one_line(&agent.name));
    let _ = writeln!(text, "Cluster: {}", one_line(&agent.cluster_name));
    let _ = writeln!(text, "Initial PAK: {}", pak.expose());
    let with = if with.is_empty() {
        "none".to_owned()
    } else {
        with.join(", ")
    };
    let _ = writeln!(text, "Registered with: {with}");
    say(Stream::Out, &text)
}

fn generator(instance: &Instance, name: &str, description: Option<&str>) -> Result<(), ServeError> {
    valid(instance, "--name", name)?;
    let pak = mint(instance)?;
    let mut db = CliConnection::open(&instance.plan()).map_err(|error| failed(instance, error))?;
    let made = db.transaction(|tx| {
        provisioning::generator(tx, Caller::Command, name, description, &pak.hash())
    });
    let generator = made.map_err(|refusal| {
        taken(instance, &mut db, refusal, "unique_generator_name", |tx| {
            let generator = generators::find(tx, name)?;
            Ok(generator.map(|g| format!("a generator of that name exists already: {}", g.id)))
        })
    })?;
    say(
        Stream::Out,
        &format!(
            "Generator created successfully:\nID: {}\nName: {}\nInitial PAK: {}\n",
            generator.id,
            one_line(&generator.name),
            pak.expose()
        ),
    )
}

fn valid(instance: &Instance, flag: &str, name: &str) -> Result<(), ServeError> {
    if name.trim().is_empty() {
        return Err(wrong(instance, format!("{flag} must not be blank")));
    }
    if name.chars().count() > NAME {
        let reason = format!("{flag} may have at most {NAME} characters");
        return Err(wrong(instance, reason));
    }
    Ok(())
}

/// Explains a refusal; when the name is taken, names the agent or generator that has it.
fn taken(
    instance: &Instance,
    db: &mut CliConnection,
    refusal: ProvisioningError,
    unique: &str,
    holder: impl FnOnce(&mut Tx<'_>) -> Result<Option<String>, DbError>,
) -> ServeError {
    match &refusal {
        ProvisioningError::Db(error) if error.constraint() == Some(unique) => {
            match db.transaction(holder) {
                Ok(Some(reason)) => wrong(instance, reason),
                // The holder of the name has been deleted in the meantime.
                Ok(None) => lost(instance, error),
                Err(error) => lost(instance, &error),
            }
        }
        _ => refused(instance, refusal),
    }
}
