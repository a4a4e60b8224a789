"""One typed tree of settings: every key with its default, its limits and its sentence."""

from __future__ import annotations

from datetime import date, datetime
from typing import Final, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX = "TASTETWIN_"
_SEED: Final = (1 << 32) - 1
"""The largest seed: a step's own, which is a million times it, still has 64 bits."""


class Section(BaseModel):
    """A group of settings; refuses unknown keys and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _fits_a_manifest(cls, value: object) -> object:
        """Manifests keep settings as JSON: whole numbers of 64 bits, text that is Unicode."""
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return value


class EngineConfig(Section):
    """Where DataFrames run."""

    remote: str | None = Field(None, description="sc://host:port of a Spark Connect server; empty = embedded Sail")
    partitions: int = Field(8, ge=1, le=100_000, description="files per mart table and features table")


class CollectConfig(Section):
    """How raw events are landed."""

    source_timezone: str = Field("UTC", description="zone of times that carry none, as an IANA name")
    mongodb_database: str = Field("tastetwin", description="database to read when --source is a mongodb:// address")


class MartConfig(Section):
    """Cleansing rules."""

    max_line_bytes: int = Field(1 << 20, ge=1 << 10, le=1 << 26, description="longer lines go to quarantine unread")
    split_bytes: int = Field(16 << 20, ge=1 << 16, description="bytes of a plain file that one task reads")
    max_quarantine_share: float = Field(0.2, ge=0, le=1, description="publish stops above this share of refused lines")
    rating_min: float = Field(0.0, description="smallest rating the source can give")
    rating_max: float = Field(5.0, description="largest rating the source can give")
    rating_outlier: Literal["keep", "clip", "null"] = Field(
        "null", description="a rating outside: keep it, clip it to the limit, or null: unknown, so no favor"
    )
    earliest: str = Field("2000-01-01", description="times before this day become null")
    future_hours: float = Field(
        24.0, ge=0, le=1e6, description="times later than the logical date's end + this become null"
    )

    @field_validator("earliest", mode="before")
    @classmethod
    def _a_date_is_its_text(cls, value: object) -> object:
        """YAML and TOML read a bare date as one."""
        return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else value

    @field_validator("rating_outlier", mode="before")
    @classmethod
    def _null_is_a_word_here(cls, value: object) -> object:
        """YAML reads a bare ``null`` as nothing."""
        return "null" if value is None else value


class FeaturesConfig(Section):
    """Which events count as taste."""

    min_rating: float | None = Field(3.0, description="a review with a lower rating is no favor; empty = all count")
    relative_to_user_mean: bool = Field(False, description="compare with the user's own mean rating instead")
    likes: bool = Field(True, description="whether likes are favors")
    like_displays: list[str] | None = Field(None, description="like_displayid values that count; empty = all")
    categories: list[int] | None = Field(None, description="only places with one of these categories; empty = all")
    min_visitors: int = Field(3, ge=1, description="places with fewer distinct users fall back to category x region")
    min_favors: int = Field(3, ge=1, description="users with fewer distinct places get no vector and no twins")


class TrainConfig(Section):
    """The encoder and how it is fitted."""

    dim: int = Field(192, ge=8, le=1024, description="length of the taste vector")
    layers: int = Field(1, ge=1, le=24, description="transformer blocks")
    width: int = Field(128, ge=16, le=1024, description="width of a transformer block")
    heads: int = Field(4, ge=1, le=32, description="attention heads")
    max_length: int = Field(100, ge=8, le=1024, description="favors read per user, the most recent ones")
    epochs: int = Field(20, ge=0, le=1000, description="passes over the training users, each cut in two anew")
    refit_days: int = Field(
        7, ge=1, description="days from one full training to the next; between them only linear views are fitted anew"
    )
    max_steps: int = Field(20_000, ge=0, description="steps of batch_users, at most; ends the passes of large data")
    batch_users: int = Field(256, ge=8, description="users per contrastive batch")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the schedule")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout in the blocks")
    mask_share: float = Field(0.15, gt=0, lt=1, description="share of favors hidden for the masked-place objective")
    temperature: float = Field(0.07, gt=0, description="of the contrastive objective")
    checkpoint_steps: int = Field(10, ge=1, description="steps between checkpoints")
    learn_from_opted_out: bool = Field(False, description="whether users who opted out are learnt from")
    seed: int = Field(1, ge=0, le=_SEED, description="of everything random in training")
    threads: int = Field(0, ge=0, description="CPU threads; 0 = all")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="of matrix products; auto = bf16 on a cuda device that has it, else float32"
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"train.width ({self.width}) must be a multiple of train.heads ({self.heads})")
        return self


class AnalyzeConfig(Section):
    """Full-user analysis."""

    k: int = Field(100, ge=1, le=1000, description="twins per user")
    exact_below: int = Field(20_000, ge=0, description="up to this many users the search is exact")
    recall: float = Field(0.99, gt=0, le=1, description="recall@k the approximate search must reach on a sample")
    csls_neighbours: int = Field(10, ge=0, le=1000, description="neighbours in the hubness correction; 0 = off")
    csls_bank: int = Field(20_000, ge=100, description="users in the hubness reference bank, at most")
    home_weight: float = Field(1.0, ge=0, le=100, description="of home area in the lists; 1 = as trained, 0 = no part")
    vectors: Literal["float32", "float16", "int8"] = Field("float32", description="how taste vectors are stored")
    shards: int = Field(
        0,
        ge=0,
        description="of the vectors, for lists made on the engine; 0 = none up to 500,000 users, then one for 250,000",
    )
    batch_tokens: int = Field(2_048, ge=512, description="padded favors per encoder call")
    sensitive_categories: list[int] = Field([], description="categories never named as evidence, nor places with one")
    seed: int = Field(1, ge=0, le=_SEED, description="of samples drawn in analysis")


class ListsConfig(Section):
    """Who is shown to whom. The search goes deeper until a list is full or nobody is left."""

    inactive_days: int | None = Field(
        None, ge=1, description="users without a favor for more days are shown to nobody; empty = they are"
    )
    min_places: int = Field(0, ge=0, description="users with fewer distinct places are shown to nobody")
    region: Literal["any", "same", "other"] = Field("any", description="of twins: any, or only of the same or another")
    exposure_cap: float | None = Field(
        2.0, ge=1, description="lists that one user may be in, relative to the mean; empty = any number"
    )
    mutual: bool = Field(False, description="order twins by the worse of both ranks, instead of by score")
    duplicate_overlap: float = Field(
        0.9, gt=0, le=1, description="Jaccard overlap of two accounts' places from which they are one person's"
    )
    burst_places: int = Field(
        100, ge=2, description="places on one day, most of all it has, from which an account is shown to nobody"
    )
    farm_accounts: int = Field(
        20, ge=2, description="accounts with hardly more than one place in common from which they count as one"
    )


class EvaluateConfig(Section):
    """Held-out users, baselines, and the gate's thresholds."""

    holdout_share: float = Field(0.1, ge=0, lt=1, description="share of eligible users kept out of training")
    max_holdout: int = Field(1_000, ge=10, description="held-out users, at most")
    min_places: int = Field(10, ge=6, description="distinct places a held-out user needs")
    min_half: int = Field(3, ge=1, description="places each half of a held-out user needs")
    seed: int = Field(1, ge=0, le=_SEED, description="of the split")
    bootstrap: int = Field(1_000, ge=100, description="resamples for the 95 % intervals")
    min_ratio_to_baseline: float = Field(0.95, description="MRR relative to the best baseline, at least")
    min_ratio_to_published: float = Field(0.95, description="MRR relative to the published run, at least")
    min_users_to_published: float = Field(0.8, ge=0, description="users, and favors, relative to the published run")
    max_never_shown: float = Field(0.6, ge=0, le=1, description="share of users in nobody's list, at most")
    max_gini: float = Field(0.9, ge=0, le=1, description="inequality of exposure, at most")
    min_served: float = Field(0.5, ge=0, le=1, description="share of eligible users with a list, at least")
    max_psi: float = Field(0.25, gt=0, description="population stability index beside the published run, at most")
    max_lines_factor: float = Field(
        1.5, ge=1, description="lines of the day over those of other days, or the reverse, at most"
    )
    min_vector_cosine: float = Field(
        0.8, ge=-1, le=1, description="of users' vectors with those of the published run, where one space holds both"
    )


class DeliverConfig(Section):
    """Publishing."""

    keep_runs: int = Field(7, ge=2, description="finished runs whose tables are kept for rollback")
    max_changed: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of lists, that change by more than half; above it a person approves; 0 = always",
    )
    max_lost: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of a date's published rows, gone when it is run again; above it a person approves; 1 = never",
    )


class TrackingConfig(Section):
    """Who else is told of training and evaluation. Never told: ids of users or places."""

    tensorboard: str | None = Field(
        None, min_length=1, description="folder for TensorBoard's event files, one in it a run; empty = none"
    )
    mlflow: str | None = Field(
        None,
        pattern=r"^(https?://|sqlite:///).+",
        description="MLflow's tracking server http(s)://... or file sqlite:///PATH; empty = none",
    )
    experiment: str = Field(
        "tastetwin", pattern=r"^[\w. -]+$", description="of MLflow, and name of the registered model"
    )
    seconds: float = Field(30.0, gt=0, le=3_600, description="that a tracker may take for a stage; then it is given up")


class ServeConfig(Section):
    """What gateway and app have in common: who may ask, and how they end."""

    keys: str | None = Field(None, description="file of API keys, made by tastetwin keys add; gateway and app need one")
    request_seconds: float = Field(10.0, gt=0, le=600, description="for the whole of a request, body and answer too")
    drain_seconds: float = Field(
        5.0, ge=0, le=600, description="between SIGTERM, when /readyz says 503, and the end of accepting"
    )
    grace_seconds: float = Field(30.0, ge=0, le=3_600, description="for requests that were accepted, after that")
    log_share: float = Field(0.01, ge=0, le=1, description="answered requests that are logged; failures always are")


class BackendConfig(Section):
    """Model backend: tensors in, tensors out."""

    threads: int = Field(0, ge=0, le=256, description="calls of the model side by side; 0 = one a CPU")
    provider: Literal["cpu", "cuda"] = Field("cpu", description="where ONNX Runtime computes")
    batch_tokens: int = Field(2_048, ge=64, le=1 << 20, description="padded favors per call of the model")
    batch_wait_ms: float = Field(0.0, ge=0, le=1_000, description="that a call waits for more requests; 0 = for none")
    queue_rows: int = Field(1_024, ge=1, le=1 << 20, description="histories waiting, at most; more are refused")
    max_rows: int = Field(256, ge=1, le=1 << 16, description="histories of one request, at most")
    max_length: int = Field(1_024, ge=1, le=1 << 16, description="favors of one history, at most")
    deadline_ms: float = Field(1_000, gt=0, le=600_000, description="for a request that names no deadline of its own")
    drain_seconds: float = Field(
        1.0, ge=0, le=600, description="between SIGTERM, when it says that it is not ready, and closing the door"
    )


class GatewayConfig(Section):
    """Model gateway: favors in, twins out."""

    backends: list[str] = Field(["http://127.0.0.1:8101"], description="addresses of model backends")
    outputs: str | None = Field(
        None, description="outputs of models: a folder (LMDB) or redis://...; empty = memory only"
    )
    outputs_mb: int = Field(256, ge=1, le=1 << 20, description="size of that store in memory or LMDB, at most")
    fresh: str | None = Field(None, description="fresh favors: a folder (LMDB) or redis://...; empty = memory only")
    fresh_mb: int = Field(1_024, ge=1, le=1 << 20, description="size of an LMDB log of fresh favors, at most")
    deadline_ms: float = Field(500, gt=0, le=600_000, description="of a request to a backend, with all its retries")
    retry_share: float = Field(0.1, ge=0, le=1, description="retries relative to requests, at most, over ten seconds")
    weights: dict[str, float] = Field({}, description="run id -> share of users; empty = the published run alone")
    shadow: dict[str, float] = Field({}, description="run id -> share of requests that it answers too, unseen")
    max_k: int = Field(100, ge=1, le=1_000, description="twins of one answer, at most")
    max_batch: int = Field(64, ge=1, le=1_000, description="items of a batch request, at most")
    max_favors: int = Field(512, ge=1, le=10_000, description="favors of a history sent with a request, at most")
    max_body: int = Field(1 << 20, ge=1 << 10, le=1 << 26, description="bytes of a request, at most")
    in_flight: int = Field(64, ge=1, le=10_000, description="requests worked on at once; more are refused with 503")
    refresh_seconds: float = Field(1.0, gt=0, le=3_600, description="between looks at the pointer and the opt-outs")
    stale_opt_outs_seconds: float = Field(
        5.0, gt=0, le=3_600, description="opt-outs that could not be read for so long: nobody is shown any more"
    )


class AppConfig(Section):
    """App: the product's Web API, and the consumer of events."""

    gateway: str = Field("http://127.0.0.1:8102", description="address of the model gateway")
    model: str = Field("taste", description="name of the model at the gateway")
    state: str | None = Field(None, description="dismissals, follows: a folder (SQLite) or redis://...; empty = memory")
    page_size: int = Field(20, ge=1, le=100, description="twins on a page")
    place_people: bool = Field(
        False, description="whether users may ask whose taste fits a place: it tells much of who was there"
    )
    user_per_second: float = Field(5.0, gt=0, le=1e6, description="requests of one user, in the long run")
    user_burst: int = Field(20, ge=1, le=1_000_000, description="requests of one user at once, at most")
    deadline_ms: float = Field(2_000, gt=0, le=600_000, description="of a request, the gateway's part included")
    in_flight: int = Field(256, ge=1, le=10_000, description="requests worked on at once; more are refused with 503")
    brokers: str | None = Field(None, description="Kafka brokers HOST:PORT[,HOST:PORT]; empty = no events are read")
    events_topic: str = Field("tastetwin.events", description="topic of reviews and likes, one JSON object a message")
    twins_topic: str = Field("tastetwin.twins", description="compacted topic of changed twin lists")
    dead_letter_topic: str = Field("tastetwin.events.dead", description="topic of messages that cannot be used")
    group: str = Field("tastetwin-app", description="consumer group")
    events_batch: int = Field(256, ge=1, le=10_000, description="messages of a batch, at most")
    events_wait_ms: float = Field(50, ge=1, le=10_000, description="a batch that is not full goes after so long")
    event_bytes: int = Field(
        1 << 16, ge=1 << 8, le=1 << 19, description="of an event, at most; others are dead letters"
    )
    events_twins: int = Field(20, ge=1, le=1_000, description="twins of a changed list; at most gateway.max_k")


class DeployConfig(Section):
    """Blue-green deployment of a run."""

    golden: int = Field(20, ge=1, le=1_000, description="users of golden queries")
    ready_seconds: float = Field(
        600.0,
        gt=0,
        le=7_200,
        description="that what was started has to get ready; the charts' longest startupSeconds, so raise both",
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=3_600, description="for what is under way, before what is replaced is told to end"
    )
    check_seconds: float = Field(3.0, ge=0, le=3_600, description="of golden queries through the load balancer")
    max_errors: float = Field(0.001, ge=0, le=1, description="share of requests that may fail (5xx) meanwhile")
    host: str = Field("127.0.0.1", description="local: where HAProxy listens")
    port: int = Field(
        8180,
        ge=1,
        le=65_500,
        description="local: of the gateway at HAProxy; the app's is the next, tiers take 10 to 25 more",
    )
    namespace: str = Field("tastetwin", description="kubernetes: of everything")
    charts: str = Field("deploy/helm", description="kubernetes: folder of the charts, or oci://...")
    model_values: list[str] = Field([], description="kubernetes: files of values of chart tastetwin-model")
    app_values: list[str] = Field([], description="kubernetes: files of values of chart tastetwin-app")
    front: str | None = Field(
        None,
        description="kubernetes: URL of the gateway at the load balancer; empty = what the route leads to is asked",
    )
    in_cluster: bool = Field(
        False, description="kubernetes: services are asked by their names, and not through kubectl port-forward"
    )


class Config(BaseSettings):
    """All settings of the daily job and of serving."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    engine: EngineConfig = EngineConfig()
    collect: CollectConfig = CollectConfig()
    mart: MartConfig = MartConfig()
    features: FeaturesConfig = FeaturesConfig()
    train: TrainConfig = TrainConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    lists: ListsConfig = ListsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    deliver: DeliverConfig = DeliverConfig()
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()
    backend: BackendConfig = BackendConfig()
    gateway: GatewayConfig = GatewayConfig()
    app: AppConfig = AppConfig()
    deploy: DeployConfig = DeployConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose values ``load`` passes as keyword arguments."""
        return env_settings, init_settings
