//! PostgreSQL from the system's package.

use crate::{free_port, run};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIME_MAX: Duration = Duration::from_secs(30);
const PORT_TRIES: usize = 5;
/// The superuser that `initdb` makes.
const SUPERUSER: &str = "postgres";
const PASSWORD: &str = "not-a-secret";
const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/postgres/roles.sql");

/// A running server with an empty cluster. Its commits outlive [`Postgres::kill`], not a power cut.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

/// A database that Muster can use.
#[derive(Clone, Debug)]
pub struct Database {
    /// As the role that the server is given.
    pub url: String,
    /// As the superuser, whom row-level security does not hold.
    pub superuser_url: String,
}

impl Postgres {
    /// Makes a cluster and starts a server on it.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let bin = bin()?;
        let dir = tempfile::Builder::new().prefix("muster-postgres-").tempdir().context("no directory")?;
        give_away(dir.path())?;
        let mut initdb = server_command(&bin.join("initdb"), dir.path());
        initdb.args(["-U", SUPERUSER, "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8", "-D"]);
        run(initdb.arg(dir.path().join("data"))).context("cannot make a cluster")?;
        let mut server = Self { bin, dir, port: 0, child: None };
        for tried in 1.. {
            server.port = free_port()?;
            match server.start_again() {
                Ok(()) => break,
                Err(error) if tried == PORT_TRIES || !format!("{error:#}").contains("in use") => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(server)
    }

    /// Starts it on its files and its port, after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        let log = self.dir.path().join("log");
        let mut command = server_command(&self.bin.join("postgres"), self.dir.path());
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        for setting in ["fsync=off", "full_page_writes=off", "max_connections=100"] {
            command.args(["-c", setting]);
        }
        let output =
            std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = command.spawn().context("cannot start postgres")?;
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let ended = child.try_wait()?.is_some();
            let ready = Command::new(self.bin.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status()
                .context("cannot start pg_isready")?;
            if !ended && ready.success() {
                break;
            }
            if ended || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("postgres does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Makes a database with Muster's roles and an empty schema.
    ///
    /// # Errors
    /// The server refuses.
    pub fn database(&self, name: &str) -> Result<Database> {
        self.database_with(name, "LOCALE 'C'")
    }

    /// As [`Self::database`], with the options of CREATE DATABASE: another locale, say.
    ///
    /// # Errors
    /// The server refuses.
    pub fn database_with(&self, name: &str, options: &str) -> Result<Database> {
        self.psql(
            SUPERUSER,
            &["-c", &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING UTF8 {options}")],
        )?;
        self.psql(name, &["-q", "-v", "login=muster", "-v", &format!("password={PASSWORD}"), "-f", ROLES])?;
        let superuser_url = format!("postgres://{SUPERUSER}@127.0.0.1:{}/{name}", self.port);
        Ok(Database { url: self.url(name), superuser_url })
    }

    /// Where a database is, as the role that the server is given.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("postgres://muster:{PASSWORD}@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs SQL as the superuser; gives what `psql -At` prints.
    ///
    /// # Errors
    /// The statement's.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        self.psql(database, &["-At", "-c", sql])
    }

    fn psql(&self, database: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.bin.join("psql"));
        command.args([
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            SUPERUSER,
            "-d",
            database,
        ]);
        let output = run(command.args(["-v", "ON_ERROR_STOP=1"]).args(args))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs SQL as whom a URL names; gives what `psql -At` prints.
    ///
    /// # Errors
    /// The statement's.
    pub fn sql_as(&self, url: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.bin.join("psql"));
        let output = run(command.args(["-X", "-v", "ON_ERROR_STOP=1", "-At", "-d", url, "-c", sql]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts it again with TLS on.
    ///
    /// # Errors
    /// It does not take the certificate.
    pub fn use_tls(&mut self, certificate: &str, key: &str) -> Result<()> {
        self.stop()?;
        let data = self.dir.path().join("data");
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            give_away(&path)?;
        }
        let settings = data.join("postgresql.auto.conf");
        std::fs::OpenOptions::new().append(true).open(settings)?.write_all(b"ssl = on\n")?;
        self.start_again()
    }

    /// Ends it as `pg_ctl stop -m fast` does: connections are told.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.end("fast")
    }

    /// Ends it at once: connections break, the next start recovers from the log.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.end("immediate")
    }

    fn end(&mut self, mode: &str) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let mut command = server_command(&self.bin.join("pg_ctl"), self.dir.path());
        let data = self.dir.path().join("data");
        let stopped = run(command.arg("-D").arg(data).args(["-m", mode, "-w", "stop"]));
        if stopped.is_err() {
            let _ = child.kill();
        }
        child.wait().context("postgres does not end")?;
        stopped.map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Where the newest installed PostgreSQL has its programs.
fn bin() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .filter(|(version, bin)| *version >= 15 && bin.join("postgres").exists())
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, bin)| bin);
    newest.context("PostgreSQL 15 or newer is not installed: apt-get install postgresql")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// PostgreSQL refuses to run as root: its directory is `nobody`'s then.
fn give_away(dir: &Path) -> Result<()> {
    if is_root() {
        run(Command::new("chown").arg("nobody").arg(dir))?;
    }
    Ok(())
}

/// A program of the server's, as `nobody` where this is root. It ends with the thread that starts it.
fn server_command(program: &Path, home: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    // QUIT: an immediate shutdown, children included.
    command.args([OsStr::new("--pdeathsig=QUIT"), program.as_os_str()]);
    command.env("HOME", home).env("LC_ALL", "C").current_dir(home);
    command
}
