//! `carillon`: see `lib.rs`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    carillon_gateway::main().await
}
