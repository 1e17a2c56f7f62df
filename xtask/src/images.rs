//! `cargo xtask images`: the container images, also where no registry can be reached.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::run;
use clap::Args;

use crate::docker::{docker, is_successful, output, require_engine};
use crate::install::{as_root, install_for_images};
use crate::screen::Screen;
use crate::{bin_dir, show, workspace};

#[derive(Args, Default)]
pub(crate) struct Images {
    /// Make the base images on this machine, even if a registry has them
    #[arg(long)]
    stand_ins: bool,
    /// Build sooner, and run slower
    #[arg(long)]
    quick: bool,
}

/// The images to run. Ours are named by id, because another checkout may use the same names.
pub(crate) struct Built {
    pub(crate) assay: String,
    pub(crate) assay_device: String,
    pub(crate) mosquitto: String,
}

impl Images {
    /// For tests, which measure no speed.
    pub(crate) fn quick() -> Self {
        Self { quick: true, ..Self::default() }
    }

    /// Builds and names the images, and prints their sizes and times.
    pub(crate) fn run(&self) -> Result<Built> {
        let began = Instant::now();
        let bases = if self.stand_ins { Bases::stand_ins()? } else { Bases::find()? };
        let (based, screen) = (began.elapsed(), Screen::new());
        let began = Instant::now();
        let built = build(&bases, self.quick)?;
        let built_in = began.elapsed();

        screen.chapter("Images");
        let (based, built_in) = (seconds(based), seconds(built_in));
        let row = |name: &str, id: &str, took: &str| Ok([name.into(), size(id)?, took.into()]);
        let rows = [
            row(&bases.build, &bases.build, &based),
            row(&bases.runtime, &bases.runtime, "with it"),
            row(&bases.mosquitto, &bases.mosquitto, "with it"),
            row(ASSAY, &built.assay, &built_in),
            row(ASSAY_DEVICE, &built.assay_device, "with it"),
        ];
        screen.table(["IMAGE", "SIZE", "TIME"], &rows.into_iter().collect::<Result<Vec<_>>>()?);
        screen.say("next: docker compose up (or docker-compose up)");
        if built.mosquitto != MOSQUITTO_IMAGE {
            screen.say(&format!(
                "and: MOSQUITTO_IMAGE={} docker compose --profile external up",
                built.mosquitto
            ));
        }
        Ok(built)
    }
}

fn build(bases: &Bases, quick: bool) -> Result<Built> {
    let commit =
        run(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(workspace()));
    // A source archive has no Git history. A build without a commit says so.
    let commit = commit
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let build_one = |target: &str| -> Result<String> {
        let mut command =
            docker(["build", "--file", "deploy/Dockerfile", "--target", target, "--tag", target]);
        command.arg("--build-arg").arg(format!("BUILD_IMAGE={}", bases.build));
        command.arg("--build-arg").arg(format!("RUNTIME_IMAGE={}", bases.runtime));
        command.arg("--build-arg").arg(format!("ASSAY_COMMIT={}", commit.trim()));
        if quick {
            command.args(["--build-arg", "OPT_LEVEL=1", "--build-arg", "LTO=off"]);
        }
        show(command.arg(".").current_dir(workspace()))?;
        output(["image", "inspect", "--format", "{{.Id}}", target])
    };
    Ok(Built {
        assay: build_one(ASSAY)?,
        assay_device: build_one(ASSAY_DEVICE)?,
        mosquitto: bases.mosquitto.clone(),
    })
}

/// The base images of our images, and the broker that is not ours.
struct Bases {
    build: String,
    runtime: String,
    mosquitto: String,
}

impl Bases {
    /// The images of Docker Hub, if they are here or can be pulled; otherwise stand-ins.
    fn find() -> Result<Self> {
        require_engine()?;
        let missing = [BUILD_IMAGE, RUNTIME_IMAGE, MOSQUITTO_IMAGE].into_iter().find(|name| {
            let is_here = exists(name);
            if !is_here {
                println!("Pulling {name}");
            }
            !is_here && !docker(["pull", name]).status().is_ok_and(|status| status.success())
        });
        match missing {
            None => Ok(Self {
                build: BUILD_IMAGE.into(),
                runtime: RUNTIME_IMAGE.into(),
                mosquitto: MOSQUITTO_IMAGE.into(),
            }),
            Some(name) => {
                println!(
                    "{name} is not here and cannot be pulled: stand-ins for the base images are \
                     made instead"
                );
                Self::stand_ins()
            }
        }
    }

    /// Makes the images from Debian's packages and this machine's Rust toolchain, unless they exist
    /// already.
    fn stand_ins() -> Result<Self> {
        require_engine()?;
        let stand_in = |name: &str| format!("{STAND_IN}/{name}");
        let bases = Self {
            build: stand_in(BUILD_IMAGE),
            runtime: stand_in(RUNTIME_IMAGE),
            mosquitto: stand_in("mosquitto:2.0"),
        };
        unless_there(&bases.runtime, make_runtime)?;
        unless_there(&bases.build, |name| make_build(name, &bases.runtime))?;
        unless_there(&bases.mosquitto, |name| {
            let file = format!("FROM {}\n{}", bases.runtime, MOSQUITTO_STEPS);
            build_from(name, &file, None)
        })?;
        Ok(bases)
    }
}

fn unless_there(name: &str, make: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    if exists(name) {
        return Ok(());
    }
    println!("Making {name}");
    make(name).with_context(|| format!("cannot make the stand-in {name}"))
}

/// Debian without the files that its slim images leave out too: documentation, translations, lists
/// of packages.
fn make_runtime(name: &str) -> Result<()> {
    install_for_images()?;
    let root = tempfile::tempdir_in(bin_dir()?)?;
    let tree = root.path().join("debian");
    show(as_root("debootstrap")?.args(["--variant=minbase", RELEASE]).arg(&tree))?;
    let imported =
        import(as_root("tar")?.args(NOT_IN_SLIM).arg("-C").arg(&tree).args(["-c", "."]), name);
    show(as_root("rm")?.args(["-rf", "--one-file-system"]).arg(&tree))?;
    imported
}

/// The toolchain of this machine, and the C compiler that SQLite, ring and AWS-LC are built with.
fn make_build(name: &str, runtime: &str) -> Result<()> {
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(workspace()))?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim_end());
    let toolchain = format!("{STAND_IN}/toolchain");
    let mut tar = Command::new("tar");
    import(tar.arg("--exclude=./share").arg("-C").arg(sysroot).args(["-c", "."]), &toolchain)?;
    let file = format!("FROM {toolchain} AS toolchain\nFROM {runtime}\n{BUILD_STEPS}");
    // The CAs that this machine trusts, because its way to crates.io may lead through a proxy with
    // a certificate of its own.
    build_from(name, &file, Some(Path::new("/etc/ssl/certs/ca-certificates.crt")))
}

/// Makes an image of the files that `tar` writes to its standard output.
fn import(tar: &mut Command, name: &str) -> Result<()> {
    let mut archive =
        tar.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {tar:?}"))?;
    let files = archive.stdout.take().context("standard output is a pipe")?;
    let imported = run(docker(["import", "-", name]).stdin(files)).map(drop);
    ensure!(archive.wait()?.success(), "{tar:?} failed");
    imported
}

/// Builds an image from the text of a Dockerfile, with at most one file beside it.
fn build_from(name: &str, dockerfile: &str, file: Option<&Path>) -> Result<()> {
    let context = tempfile::tempdir()?;
    fs::File::create(context.path().join("Dockerfile"))?.write_all(dockerfile.as_bytes())?;
    if let Some(file) = file {
        let copy = context.path().join(file.file_name().context("a file has a name")?);
        fs::copy(file, copy).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    show(docker(["build", "--tag", name]).arg(context.path()))
}

fn exists(image: &str) -> bool {
    is_successful(&mut docker(["image", "inspect", image]))
}

fn size(image: &str) -> Result<String> {
    let bytes: f64 = output(["image", "inspect", "--format", "{{.Size}}", image])?.parse()?;
    Ok(format!("{:.0} MB", bytes / 1e6))
}

fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

const ASSAY: &str = "assay";
const ASSAY_DEVICE: &str = "assay-device";
/// The names in deploy/Dockerfile and docker-compose.yml.
const BUILD_IMAGE: &str = "rust:1.95-bookworm";
const RUNTIME_IMAGE: &str = "debian:bookworm-slim";
const MOSQUITTO_IMAGE: &str = "eclipse-mosquitto:2.0";
/// No other image has a name with this prefix.
const STAND_IN: &str = "assay-standin";
const RELEASE: &str = "bookworm";
const NOT_IN_SLIM: [&str; 6] = [
    "--exclude=./usr/share/doc/*",
    "--exclude=./usr/share/man/*",
    "--exclude=./usr/share/locale/*",
    "--exclude=./var/cache/apt/*",
    "--exclude=./var/lib/apt/lists/*",
    "--exclude=./var/log/*",
];
const BUILD_STEPS: &str = "\
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev \\
 && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/
COPY --from=toolchain / /usr/local/
";
/// As in Eclipse's image, the name of the program is enough to run it.
const MOSQUITTO_STEPS: &str = "\
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends mosquitto \\
 && rm -rf /var/lib/apt/lists/*
";
