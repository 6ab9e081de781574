//! The command line: one file for each group of commands. Data goes to standard output,
//! everything else to standard error.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub mod exit;
pub mod output;
pub mod client;
pub mod log_lines;
pub mod daemon;
pub mod status;
pub mod check;
pub mod operate;
pub mod log;
pub mod policy;
pub mod setup;
pub mod manifests;
pub mod lab;
pub mod simulate;
pub mod table;

use self::exit::Exit;
use self::output::Output;

/// Moves a service and its PostgreSQL database to another cloud when the active one dies.
#[derive(Debug, Parser)]
#[command(
    name = "failover",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    before_help = "Examples:\n  failover lab run                              run a real failover on this machine\n  failover status --watch                       show the state, and why it is not failing over\n  failover check                                list what would block a failover\n  failover promote shop --to gcp --dry-run      show what a takeover would do and lose\n  failover log verify decision.log              verify that the decision log was not altered",
    after_help = exit::HELP
)]
pub struct Cli {
    /// Output format: for people, or JSON with the names used in the decision log
    #[arg(long, global = true, value_enum, default_value_t = Form::Human)]
    output: Form,
    /// When to use colour; `NO_COLOR` and `TERM=dumb` are honoured
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto)]
    color: Colour,
    #[command(subcommand)]
    verb: Verb,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the controller
    Run(daemon::RunArgs),
    /// Run the agent beside a database
    Agent(daemon::AgentArgs),
    /// Run an extra observer, outside both sites
    Observer(daemon::ObserverArgs),
    /// Own PostgreSQL for the agent (started by the agent only)
    #[command(hide = true)]
    Guard(daemon::GuardArgs),
    /// Show sites, roles, health, lag, and why it is not failing over, gate by gate
    Status(status::StatusArgs),
    /// Check beforehand everything that a failover would need
    Check(check::CheckArgs),
    /// Make a site active: an unplanned takeover by hand
    Promote(operate::PromoteArgs),
    /// Stop automation at once
    Hold(operate::HoldArgs),
    /// Resume automation: end a hold, re-arm after a failover
    Release(operate::ReleaseArgs),
    /// Continue from the actual state when the decision log is out of date
    Adopt(operate::AdoptArgs),
    /// Transfer a site's write lease to a second instance of its agent
    AdoptInstance(operate::AdoptInstanceArgs),
    /// Read or verify the decision log
    #[command(subcommand)]
    Log(log::LogVerb),
    /// Check a policy, or show what follows from it
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// Create certificates and keys for a controller, its agents, observers and operators
    Certificates(setup::CertificatesArgs),
    /// Run a real failover on this machine: two sites, real PostgreSQL, no setup
    #[command(subcommand)]
    Lab(lab::LabVerb),
    /// Run the controller and agents in a simulation, with faults drawn from seeds
    Simulate(simulate::SimulateArgs),
    /// Print shell completions, the man page, the JSON schema of a file, or Kubernetes manifests
    #[command(subcommand)]
    Generate(setup::GenerateVerb),
}

/// How to reach the controller.
#[derive(Debug, Clone, Args)]
pub struct Reach {
    /// The controller's address; not needed for a running lab
    #[arg(long, env = "FAILOVER_CONTROLLER", value_name = "HOST:PORT")]
    controller: Option<String>,
    /// The authority's certificate
    #[arg(long, env = "FAILOVER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The operator's certificate
    #[arg(long, env = "FAILOVER_CERTIFICATE", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The file with the operator's key
    #[arg(long, env = "FAILOVER_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The tree of commands, from which help, completions and the man page come.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    guarded(ran)
}

/// Runs something; a panic ends the program with one line and its own exit code.
pub fn guarded(work: impl FnOnce() -> ExitCode + std::panic::UnwindSafe) -> ExitCode {
    output::tell_panics();
    std::panic::catch_unwind(work).unwrap_or_else(|_told| Exit::Broken.into())
}

fn ran() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some((crate::agent::guard::postmaster::EXEC_VERB, rest)) =
        arguments.get(1).map(String::as_str).zip(arguments.get(2..))
    {
        let output = Output::new(Form::Human, Colour::Never);
        let error = anyhow::Error::new(crate::agent::guard::postmaster::exec(rest));
        return output.fail(&error.context("start PostgreSQL"));
    }
    crate::adapters::tls::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wrong = error.use_stderr();
            // Nobody is left to tell that nobody reads.
            error.print().unwrap_or_default();
            return if wrong {
                Exit::Wrong.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    let output = Output::new(cli.output, cli.color);
    let ran = match cli.verb {
        Verb::Run(args) => daemon::run(&args, &output),
        Verb::Agent(args) => daemon::agent(&args, &output),
        Verb::Observer(args) => daemon::observer(&args, &output),
        Verb::Guard(args) => daemon::guard(&args, &output),
        Verb::Status(args) => status::run(&args, &output),
        Verb::Check(args) => check::run(&args, &output),
        Verb::Promote(args) => operate::promote(&args, &output),
        Verb::Hold(args) => operate::hold(&args, &output),
        Verb::Release(args) => operate::release(&args, &output),
        Verb::Adopt(args) => operate::adopt(&args, &output),
        Verb::AdoptInstance(args) => operate::adopt_instance(&args, &output),
        Verb::Log(verb) => log::run(&verb, &output),
        Verb::Policy(verb) => policy::run(&verb, &output),
        Verb::Certificates(args) => setup::certificates(&args, &output),
        Verb::Lab(verb) => lab::run(verb, &output),
        Verb::Simulate(args) => simulate::run(&args, &output),
        Verb::Generate(verb) => setup::generate(&verb, &output),
    };
    match ran {
        Ok(exit) => exit.into(),
        Err(error) => output.fail(&error),
    }
}
