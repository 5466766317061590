//! `cargo xtask`: the project's own commands. Arguments only; the work is in the library.
#![expect(clippy::print_stdout, reason = "talking to the person at the terminal is what these commands are for")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use xtask::{demo, images, interrupt, stages, tidy, workspace};

const USAGE: &str = "\
The project's own commands. Run them from anywhere in the checkout.

  cargo xtask test [--full] [--only STAGE]… [--list]
      installs what is missing (as root on Debian), then formats, lints, checks and tests everything; the last line counts
      --full        everything at full length, as before a release
      --only STAGE  only this stage (may be repeated); --list names them
  cargo xtask tidy
      checks the house rules that no compiler knows
  cargo xtask images [DIRECTORY] [--all]
      makes the disks to try things on, in target/images: v1, a small guest and a machine for a node; with --all also v2, v3 and v4
  cargo xtask demo [--image FILE] [--keep]
      the main job from end to end: a disk goes from node A to node B, boots there while it arrives, and comes back changed
      --image FILE  this disk instead of a Debian that is made
      --keep        stays open at the end, to play on

Exit status: 0 when all went well, 1 when something failed, 2 for a usage error.
";

fn main() -> ExitCode {
    if let Err(error) = interrupt::install() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let result = match command {
        "test" => test(rest),
        "tidy" => run_tidy(rest),
        "images" => make_images(rest),
        "demo" => run_demo(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(true)
        }
        other => Err(Usage(format!("there is no command `{other}`")).into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Usage>() {
                eprint!("\n{USAGE}");
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}

/// What was typed is not a command of ours.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn test(arguments: &[String]) -> Result<bool> {
    let mut selection = stages::Selection::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => selection.full = true,
            "--list" => {
                print!("{}", stages::list());
                return Ok(true);
            }
            "--only" => match arguments.next() {
                Some(stage) if stages::exists(stage) => selection.only.push(stage.clone()),
                Some(stage) => bail!(Usage(format!("there is no stage `{stage}`; --list names them"))),
                None => bail!(Usage("--only needs the name of a stage".to_owned())),
            },
            other => bail!(Usage(format!("`test` does not know `{other}`"))),
        }
    }
    stages::run_selected(&selection)
}

fn run_tidy(arguments: &[String]) -> Result<bool> {
    if let Some(other) = arguments.first() {
        bail!(Usage(format!("`tidy` does not know `{other}`")));
    }
    let findings = tidy::check(&workspace::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {}", if findings.is_empty() { "clean".to_owned() } else { format!("{} findings", findings.len()) });
    Ok(findings.is_empty())
}

fn run_demo(arguments: &[String]) -> Result<bool> {
    let mut options = demo::Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--keep" => options.keep = true,
            "--image" => match arguments.next() {
                Some(image) => options.image = Some(PathBuf::from(image)),
                None => bail!(Usage("--image needs a file".to_owned())),
            },
            other => bail!(Usage(format!("`demo` does not know `{other}`"))),
        }
    }
    demo::run_all(&options)?;
    Ok(true)
}

fn make_images(arguments: &[String]) -> Result<bool> {
    let mut directory = None;
    let mut disks = images::Disks::First;
    for argument in arguments {
        match argument.as_str() {
            "--all" => disks = images::Disks::All,
            option if option.starts_with('-') => bail!(Usage(format!("`images` does not know `{option}`"))),
            path if directory.is_none() => directory = Some(PathBuf::from(path)),
            path => bail!(Usage(format!("one directory is enough: `{path}`"))),
        }
    }
    let directory = directory.unwrap_or_else(images::default_directory);
    images::make(&directory, disks)?;
    Ok(true)
}
