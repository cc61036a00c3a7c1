//! The program: parses its arguments, runs the command, and says how it went.

use std::process::ExitCode;

use surf_node::cli::{self, Cli};

fn main() -> ExitCode {
    surf_node::engine::enter_sandbox();
    cli::quieten_panics();
    let cli = Cli::read();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the system gives this program no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cli.run());
    // Work that cannot be interrupted, such as reading stdin, must not keep the program alive.
    runtime.shutdown_background();
    cli::report(result)
}
