//! `carillon`: see `lib.rs`.

use std::process::ExitCode;

use tokio::runtime::Builder;

/// Memory that was in use once goes back to the system when it has been free for two seconds; the C
/// library's would keep most of it (docs/PERFORMANCE.md). Its options are in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Sockets whose news are taken up at a time. When thousands have something to say at once, what is
/// begun for those that came first is finished between them; tokio's 1,024 would all be begun first.
const NEWS_AT_ONCE: usize = 64;

fn main() -> ExitCode {
    let runtime =
        Builder::new_multi_thread().enable_all().max_io_events_per_tick(NEWS_AT_ONCE).build();
    match runtime {
        Ok(runtime) => runtime.block_on(carillon_gateway::main()),
        Err(error) => {
            eprintln!("error: no threads can be started: {error}");
            ExitCode::FAILURE
        }
    }
}
