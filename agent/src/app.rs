//! The composition root: makes every channel, hands each stage its next stage's sender, and takes it all down.
//!
//! Called by `main`. Order of the start: queue, models (the birth tells of them), uplink, pipelines, sources (sink first).
//! Order of the stop: sources, pipelines (they drain), uplink (it sends on for a moment, then DISCONNECT), queue. A queue whose journal
//! stopped (the disk failed for good) takes the whole agent down and up again after a wait.

mod join;

use join::SECRET_BYTES_MAX;
pub use join::enroll;

use crate::choice::Choices;
use crate::clock::{AgentClock, SharedClock};
use crate::config::{Config, SourceConfig};
use crate::identity::{self, EnrollError, StoreError};
use crate::memory::{LowMemory, MemoryWatch};
use crate::metrics::{self, Listen, Metrics};
use crate::pipeline::{self, Feed, Inbox, MetricNames, ModelError, Pipeline, Scorer};
use crate::queue::{Bounds, Queue, QueueError, QueueWatch};
use crate::source::{self, SourceContext};
use crate::supervisor::{Exit, Notifier, RestartDelay, Stop, StopSender, Supervisor, stop_pair};
use crate::tls;
use muster_wire::RunningModel;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How often the queue's health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// The longest that pipelines may take to drain at the end.
const PIPELINES_STOP_MAX: Duration = Duration::from_secs(5);
/// The longest that the uplink may take to leave.
const UPLINK_STOP_MAX: Duration = Duration::from_secs(8);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The queue cannot be opened.
    #[error("queue")]
    Queue(#[from] QueueError),
    /// A journal stopped while the agent ran.
    #[error("the queue stopped: {0}")]
    QueueStopped(String),
    /// A model is of no use.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Nothing says who this device is.
    #[error(
        "no identity: expected identity.claim, identity.claim_file or identity.token_file, or an earlier enrolment"
    )]
    NoIdentity,
    /// The claim's file or the token's file.
    #[error("cannot read {}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A claim's, a token's or a CA's file is over its bound.
    #[error("{}: expected at most {SECRET_BYTES_MAX} bytes", path.display())]
    SecretTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The claim is malformed.
    #[error("claim")]
    Claim(#[from] identity::ClaimError),
    /// The server refused the claim.
    #[error("enrolment")]
    Enroll(#[from] EnrollError),
    /// The identity's files.
    #[error("identity")]
    Store(#[from] StoreError),
    /// The TLS setup.
    #[error("TLS")]
    Tls(#[from] tls::TlsError),
    /// A name in the configuration or the identity.
    #[error("identity")]
    Id(#[from] muster_wire::IdError),
    /// The operating system refuses signals or threads.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs until SIGTERM or SIGINT; starts anew where the queue's disk failed.
///
/// # Errors
/// The agent cannot start.
pub async fn run(config: Config) -> Result<(), AppError> {
    let system = |what| move |source| AppError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listen for SIGINT"))?;
    let (stopper, stop) = stop_pair();
    let stopper = Arc::new(stopper);
    let raise = Arc::clone(&stopper);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        raise.stop();
    });
    run_until(config, stop).await
}

/// Runs until `stop` is up.
///
/// # Errors
/// The agent cannot start.
pub async fn run_until(config: Config, mut stop: Stop) -> Result<(), AppError> {
    let notifier = Notifier::from_env();
    let metrics = Metrics::new();
    let clock = Arc::new(AgentClock::default());
    let mut delay = RestartDelay::default();
    let mut started = Instant::now();
    loop {
        let agent = Agent::start(&config, &metrics, &clock).await?;
        match agent.run(&notifier, &mut stop).await {
            Err(AppError::QueueStopped(reason)) if !stop.is_up() => {
                let wait = delay.next(started.elapsed());
                tracing::error!(
                    reason,
                    wait_ms = wait.as_millis(),
                    "the queue stopped, the agent starts anew"
                );
                metrics.restarts.inc();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.wait() => return Ok(()),
                }
                started = Instant::now();
            }
            other => return other,
        }
    }
}

/// Everything that runs.
struct Agent {
    queue: Queue,
    watch: QueueWatch,
    memory: Option<MemoryWatch>,
    metrics: Metrics,
    feeders: Vec<JoinHandle<()>>,
    uplink: JoinHandle<()>,
    metrics_server: Option<JoinHandle<()>>,
    stop_tasks: StopSender,
    stop_sources: StopSender,
    stop_uplink: StopSender,
}

impl Agent {
    async fn start(config: &Config, metrics: &Metrics, clock: &Arc<AgentClock>) -> Result<Self, AppError> {
        join::who_am_i(config)?;
        let shared: SharedClock = clock.clone();
        let bounds = Bounds::from_config(&config.queue);
        let queue = Queue::open_dir(&config.queue_dir(), bounds, shared)?;
        let watch = QueueWatch::new(queue.clone());
        let watch = watch.with_written_bytes_day_max(config.queue.written_bytes_day_max);
        let low_memory = LowMemory::default();
        let memory_min = config.device.memory_available_mib_min;
        let memory = memory_min.map(|mib_min| MemoryWatch::new(mib_min, low_memory.clone()));
        queue.forget_empty_openings()?;
        let scorers = load_models(config).await?;
        let models = scorers.iter().flatten().map(|scorer| scorer.running().clone()).collect();
        // Once this is up nothing is started again, so nothing of this agent outlives it.
        let (stop_tasks, tasks_stop) = stop_pair();
        let supervisor = Supervisor::new(metrics.clone(), tasks_stop);
        let (stop_sources, sources_stop) = stop_pair();
        let (stop_uplink, uplink_stop) = stop_pair();
        let metrics_server = config.metrics.listen.as_deref().and_then(Listen::parse).map(|listen| {
            let metrics = metrics.clone();
            supervisor.spawn("metrics".into(), move || {
                let serving = metrics::serve(listen.clone(), metrics.clone());
                async move { serving.await.into() }
            })
        });
        let uplink = join::spawn_uplink(&supervisor, config, models, &queue, metrics, clock, uplink_stop);
        let context = Feeding { supervisor: &supervisor, metrics, clock, stop: sources_stop, low_memory };
        let feeders = context.spawn(config, &queue, scorers);
        Ok(Self {
            watch,
            memory,
            metrics: metrics.clone(),
            queue,
            feeders,
            uplink,
            metrics_server,
            stop_tasks,
            stop_sources,
            stop_uplink,
        })
    }

    async fn run(mut self, notifier: &Notifier, stop: &mut Stop) -> Result<(), AppError> {
        notifier.ready();
        let every = notifier.alive_interval().unwrap_or(HEALTH_INTERVAL).min(HEALTH_INTERVAL);
        let mut beat = tokio::time::interval(every);
        let failure = loop {
            tokio::select! {
                _ = beat.tick() => {
                    notifier.alive();
                    self.watch.count(&self.metrics);
                    if let Some(memory) = &mut self.memory {
                        memory.look(&self.metrics);
                    }
                    if let Some(reason) = self.queue.failure() {
                        break Some(reason);
                    }
                }
                () = stop.wait() => break None,
            }
        };
        if failure.is_none() {
            notifier.stopping();
        }
        let closed = self.take_down().await;
        match failure {
            Some(reason) => Err(AppError::QueueStopped(reason)),
            None => closed,
        }
    }

    async fn take_down(self) -> Result<(), AppError> {
        self.stop_tasks.stop();
        self.stop_sources.stop();
        let feeders = self.feeders;
        let drained = async {
            for feeder in feeders {
                // A task that panicked has been logged by its supervisor.
                let _ = feeder.await;
            }
        };
        if tokio::time::timeout(PIPELINES_STOP_MAX, drained).await.is_err() {
            tracing::warn!("pipelines did not drain in time");
        }
        self.stop_uplink.stop();
        if tokio::time::timeout(UPLINK_STOP_MAX, self.uplink).await.is_err() {
            tracing::warn!("the uplink did not leave in time");
        }
        if let Some(server) = self.metrics_server {
            server.abort();
        }
        let queue = self.queue;
        let closed = tokio::task::spawn_blocking(move || queue.close()).await;
        closed.map_err(|error| AppError::QueueStopped(error.to_string()))?.map_err(AppError::Queue)
    }
}

fn feed_of(source: Option<&SourceConfig>) -> Feed {
    match source {
        Some(SourceConfig::Images(_)) => Feed::Pictures,
        Some(SourceConfig::Pcm(pcm)) => Feed::Sound { rate_hz: source::pcm_rate_hz(pcm) },
        _ => Feed::Rows,
    }
}

/// Loads every model off the connection's thread; the order is that of the pipelines. What was chosen is kept.
async fn load_models(config: &Config) -> Result<Vec<Option<Scorer>>, AppError> {
    let config = config.clone();
    let load = move || {
        let mut choices = Choices::open(&config.data_dir);
        let loaded: Result<Vec<_>, _> = each_model(&config, &mut choices).collect();
        choices.save();
        loaded
    };
    let loaded = tokio::task::spawn_blocking(load).await;
    let panicked = |_| AppError::QueueStopped("loading a model panicked".into());
    let scorers = loaded.map_err(panicked)??;
    for scorer in scorers.iter().flatten() {
        let RunningModel { pipeline, model, version, engine, form, median_us } = scorer.running();
        tracing::info!(pipeline, model, version, engine, form, median_us, "model loaded");
        for other in scorer.passed_over() {
            tracing::warn!(pipeline, model, %other, "an engine and form is passed over");
        }
    }
    Ok(scorers)
}

fn each_model(
    config: &Config,
    choices: &mut Choices,
) -> impl Iterator<Item = Result<Option<Scorer>, ModelError>> {
    config.pipelines.iter().map(|pipeline| {
        let source = config.sources.iter().find(|source| source.name() == pipeline.source);
        pipeline::load(pipeline, feed_of(source), choices)
    })
}

/// Loads and self-tests every model, for `muster-agent check`; lines to print. Nothing is written.
///
/// # Errors
/// The first model that is of no use.
pub fn check_models(config: &Config) -> Result<Vec<String>, ModelError> {
    let mut lines = Vec::new();
    for scorer in each_model(config, &mut Choices::open(&config.data_dir)) {
        let Some(scorer) = scorer? else { continue };
        let RunningModel { pipeline, model, version, engine, form, .. } = scorer.running();
        let test = scorer.self_test();
        let (samples, difference) = (test.samples, test.difference_max);
        for other in scorer.passed_over() {
            lines.push(format!("pipeline {pipeline}: passed over {other}"));
        }
        lines.push(format!(
            "pipeline {pipeline}: model {model} {version} on {engine} with {form}, {samples} golden samples pass (largest difference {difference:.2e})"
        ));
    }
    Ok(lines)
}

struct Feeding<'a> {
    supervisor: &'a Supervisor,
    metrics: &'a Metrics,
    clock: &'a Arc<AgentClock>,
    stop: Stop,
    low_memory: LowMemory,
}

impl Feeding<'_> {
    /// Pipelines first, then the sources that feed them.
    fn spawn(&self, config: &Config, queue: &Queue, scorers: Vec<Option<Scorer>>) -> Vec<JoinHandle<()>> {
        let names = Arc::new(MetricNames::default());
        let mut sinks: HashMap<&str, Vec<mpsc::Sender<source::Sample>>> = HashMap::new();
        let mut tasks = Vec::new();
        for (settings, scorer) in config.pipelines.iter().zip(scorers) {
            let (sender, receiver) = source::sample_channel();
            sinks.entry(&settings.source).or_default().push(sender);
            let (metrics, names, stop) = (self.metrics.clone(), Arc::clone(&names), self.stop.clone());
            let pipeline = Pipeline::new(settings.clone(), scorer, queue.clone(), metrics, names, stop)
                .with_low_memory(self.low_memory.clone());
            tasks.push(self.spawn_pipeline(&settings.name, pipeline, receiver));
        }
        for source in &config.sources {
            let Some(sinks) = sinks.remove(source.name()) else {
                tracing::warn!(source = source.name(), "no pipeline reads this source, it stays off");
                continue;
            };
            let clock: SharedClock = self.clock.clone();
            let context =
                SourceContext { clock, metrics: self.metrics.clone(), stop: self.stop.clone(), sinks };
            tasks.push(self.spawn_source(source, context));
        }
        tasks
    }

    fn spawn_pipeline(
        &self,
        name: &str,
        pipeline: Pipeline,
        receiver: mpsc::Receiver<source::Sample>,
    ) -> JoinHandle<()> {
        let pipeline = Arc::new(Mutex::new(pipeline));
        let inbox: Inbox = Arc::new(Mutex::new(receiver));
        self.supervisor.spawn(format!("pipeline {name}"), move || {
            let (pipeline, inbox) = (Arc::clone(&pipeline), Arc::clone(&inbox));
            let work = tokio::task::spawn_blocking(move || {
                pipeline.lock().unwrap_or_else(PoisonError::into_inner).run(&inbox)
            });
            async move {
                match work.await {
                    Ok(result) => result.into(),
                    Err(error) => Exit::Failed(error.to_string()),
                }
            }
        })
    }

    /// A source that ends keeps its senders until its task is gone, so its pipelines end with it.
    fn spawn_source(&self, source: &SourceConfig, context: SourceContext) -> JoinHandle<()> {
        let config = source.clone();
        self.supervisor
            .spawn(format!("source {}", source.name()), move || source::run(config.clone(), context.clone()))
    }
}
