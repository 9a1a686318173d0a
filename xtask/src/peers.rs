//! `cargo xtask bench setup-peers` and `--suite peers`: other systems from Debian's packages, and the program that measures them
//! beside ours. Invariant: nothing that setting up started is left running.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo;

/// A package of Debian, the program in it that is measured, and the service that the package would start.
struct Package {
    name: &'static str,
    program: &'static str,
    service: &'static str,
}

const PACKAGES: [Package; 4] = [
    Package { name: "redis-server", program: "redis-server", service: "redis-server" },
    Package { name: "etcd-server", program: "etcd", service: "etcd" },
    Package { name: "nats-server", program: "nats-server", service: "nats-server" },
    // Galera comes with it.
    Package { name: "mariadb-server", program: "mariadbd", service: "mariadb" },
];

/// Where Debian asks whether a package may start its service. What stands there already is left alone; what this puts there is
/// removed however the installation ends.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get install --yes --no-install-recommends "$@"
"#;

/// A service that was started after all has this long to end.
const STOP_MAX: Duration = Duration::from_secs(10);

const HELP: &str = "\
Installs what `cargo xtask bench --suite peers` measures, from Debian's packages (needs apt and root), and builds the program
that measures it. No service is started or left enabled; what is there already stays as it is.

Usage: cargo xtask bench setup-peers
";

/// What is left for the program of the peers when it is asked for: `peers ...`, or `--suite peers` among the arguments.
pub(crate) fn asked(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let rest = match arguments.split_first() {
        Some((first, rest)) if first == "peers" => return Some(rest.to_vec()),
        Some((first, rest)) if first == "run" => rest,
        _ => arguments,
    };
    if let Some(at) = rest.iter().position(|argument| argument == "--suite=peers") {
        return Some([&rest[..at], &rest[at + 1..]].concat());
    }
    let at = rest.windows(2).position(|pair| pair[0] == "--suite" && pair[1] == "peers")?;
    Some([&rest[..at], &rest[at + 2..]].concat())
}

/// Builds the program of the peers into the folder where the node program lies, in which it looks for that one.
pub(crate) fn program() -> Result<Command, String> {
    let mut build = cargo::cargo(["build", "--release", "--manifest-path", "benches/peers/Cargo.toml", "--target-dir"]);
    build.arg(cargo::target());
    cargo::run(build)?;
    Ok(cargo::built("release", "replikit-peers"))
}

/// Installs the packages that are missing, and builds the program.
pub(crate) fn setup(arguments: &[OsString]) -> Result<(), String> {
    match arguments {
        [] => {}
        [flag] if flag == "--help" || flag == "-h" => {
            print!("{HELP}");
            return Ok(());
        }
        [other, ..] => return Err(format!("setup-peers takes no `{}`", other.display())),
    }
    let mut missing = Vec::new();
    for package in &PACKAGES {
        match installed(package.name)? {
            Some(version) => println!("{} {version}: was there already", package.name),
            None => missing.push(package),
        }
    }
    if !missing.is_empty() {
        install(&missing)?;
    }
    program()?;
    println!("built; `cargo xtask bench --suite peers` runs it");
    Ok(())
}

fn install(missing: &[&Package]) -> Result<(), String> {
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if output("id", &["-u"])?.trim() != "0" {
        return Err(format!("{} must be installed, which only root may do", names.join(", ")));
    }
    let before = running();
    let mut command = apt(&names);
    if !command.status().is_ok_and(|status| status.success()) {
        println!("once more, with the list of packages brought up to date");
        let mut update = Command::new("apt-get");
        update.args(["update", "--quiet"]);
        cargo::run(update)?;
        let status = apt(&names).status().map_err(|error| format!("sh does not start: {error}"))?;
        if !status.success() {
            return Err(format!("apt-get does not install {} ({status}); it says why above", names.join(", ")));
        }
    }
    for package in missing {
        // Not to be started by the next boot either. A system without services has nothing to disable, and some packages have
        // no script that the first of the two would know.
        let _ = Command::new("update-rc.d").args([package.service, "disable"]).output();
        let _ = Command::new("systemctl").args(["disable", package.service]).output();
        let version = installed(package.name)?.ok_or_else(|| format!("apt-get left {} out", package.name))?;
        println!("{} {version}: installed now", package.name);
    }
    for pid in running().difference(&before) {
        stop(*pid)?;
        println!("process {pid}, which the installation had started: stopped");
    }
    Ok(())
}

fn apt(names: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", INSTALL, "sh"]).args(names).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The version of a package; `None` when it is not installed.
fn installed(package: &str) -> Result<Option<String>, String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Version}", package]);
    let output = query.output().map_err(|error| {
        let names = PACKAGES.map(|package| package.name).join(", ");
        format!(
            "dpkg-query does not start ({error}): this installs Debian's packages; elsewhere, install {names} yourself"
        )
    })?;
    // A package that was never heard of is an error to dpkg-query, and prints nothing.
    Ok(version_of(&String::from_utf8_lossy(&output.stdout)))
}

/// The version in `STATUS VERSION`, if that status is the one of an installed package.
fn version_of(shown: &str) -> Option<String> {
    shown.trim().strip_prefix("installed ").map(str::to_owned)
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program} does not start: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Processes of the programs that are installed.
fn running() -> BTreeSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let ours = |pid: &u32| {
        // A process that ended meanwhile has no name.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        PACKAGES.iter().any(|package| package.program == name.trim())
    };
    pids.filter(ours).collect()
}

fn stop(pid: u32) -> Result<(), String> {
    output("kill", &[&pid.to_string()])?;
    let begun = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        if begun.elapsed() > STOP_MAX {
            return Err(format!("process {pid}, which the installation started, does not end"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(arguments: &[&str]) -> Option<Vec<String>> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let words = asked(&arguments)?.into_iter().map(|word| word.into_string().expect("it is text"));
        Some(words.collect())
    }

    #[test]
    fn the_suite_of_peers_goes_to_its_own_program() {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(rest(&["--suite", "peers", "--seconds", "1"]), words(&["--seconds", "1"]));
        assert_eq!(rest(&["run", "--rounds", "2", "--suite=peers"]), words(&["--rounds", "2"]));
        assert_eq!(rest(&["peers", "--help"]), words(&["--help"]));
        assert_eq!(rest(&["--suite", "smoke", "--only", "peers"]), None);
        assert_eq!(rest(&[]), None);
    }

    #[test]
    fn only_an_installed_package_has_a_version() {
        assert_eq!(version_of("installed 5:7.0.15-1"), Some("5:7.0.15-1".to_owned()));
        assert_eq!(version_of("config-files 5:7.0.15-1"), None);
        assert_eq!(version_of("not-installed "), None);
        assert_eq!(version_of(""), None);
    }

    #[test]
    fn an_argument_that_setting_up_does_not_know_is_refused() {
        assert!(setup(&["--now".into()]).is_err_and(|why| why.contains("--now")));
    }
}
