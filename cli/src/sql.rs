//! `larder sql`.

use larder_policy::trigger::Trigger;

use crate::{
    args,
    error::{Error, Result},
    outcome::Outcome,
    output,
};

/// Prints statements for Postgres.
pub(crate) fn run(args: args::Sql) -> Result<Outcome> {
    let args::SqlCommand::Trigger(args) = args.command;
    let args::Trigger { table, schema, channel, tags, paths, prefixes, everything, soft } = args;
    let trigger = Trigger { schema, table, channel, tags, paths, prefixes, everything, soft };
    output::print(&trigger.sql().map_err(|error| Error::Usage(error.to_string()))?)?;
    Ok(Outcome::Good)
}
