//! What every command has: settings, a way to print, and a client once it is asked for.

use holm_api::client::Client;

use crate::{
    config::{Config, Target},
    home::Home,
    local,
    output::Output,
};

/// What every command has.
pub struct Session {
    /// The settings.
    pub config: Config,
    /// The way to print.
    pub output: Output,
}

impl Session {
    /// The home of this machine's server.
    pub fn home(&self) -> Home {
        Home(self.config.home.value.clone())
    }

    /// A client of the server that is meant; the one of this machine is started if it does not run.
    pub async fn client(&self) -> anyhow::Result<Client> {
        match self.config.target()? {
            Target::Local => local::connect_or_start(&self.home()).await,
            Target::Named { endpoint, token } => Ok(Client::new(endpoint, token.value)?),
        }
    }
}
