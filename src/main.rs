//! The program: hands its command line to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    failover::cli::main()
}
