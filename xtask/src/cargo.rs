//! Where the workspace lies, and how cargo is called there.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's top folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the workspace")
}

/// The folder that cargo builds into: this program lies in its `debug` folder, wherever it was configured to be.
pub(crate) fn target() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.parent()?.to_path_buf()))
        .unwrap_or_else(|| root().join("target"))
}

/// A call of the cargo that runs this program, at the workspace's top.
pub(crate) fn cargo<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// A call of this program itself.
pub(crate) fn xtask(task: &str) -> Result<Command, String> {
    let program = std::env::current_exe().map_err(|error| format!("xtask cannot find its own program: {error}"))?;
    let mut command = Command::new(program);
    command.arg(task).current_dir(root());
    Ok(command)
}

/// A call of a program of the workspace that has been built, at the workspace's top.
pub(crate) fn built(profile: &str, program: &str) -> Command {
    let mut command = Command::new(target().join(profile).join(program));
    command.current_dir(root());
    command
}

/// Runs a command to its end; says which one failed.
pub(crate) fn run(mut command: Command) -> Result<(), String> {
    let shown = command.get_args().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("{program} does not start: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{program} {shown}` failed ({status})")) }
}
