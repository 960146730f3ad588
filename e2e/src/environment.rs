//! Settings of the tests, from environment variables.

use std::{env, path::PathBuf};

use anyhow::Context;

/// The variable of that name.
///
/// # Errors
/// When it is not set, with the way to set it.
pub fn variable(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| {
        format!("{name} is not set: run the tests by `./dev test e2e`, or after `eval \"$(./dev env)\"`")
    })
}

/// The checkout.
pub fn root() -> anyhow::Result<PathBuf> {
    variable("LARDER_ROOT").map(PathBuf::from)
}

/// The image of the application, the client and the load.
pub fn app_image() -> anyhow::Result<String> {
    variable("LARDER_E2E_APP_IMAGE")
}
