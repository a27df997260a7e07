# Every public name and its module, for editors, type checkers and `__getattr__` in __init__.py.

from claudescale import errors as errors
from claudescale.api.catalog import tiers as tiers
from claudescale.api.client import connect as connect
from claudescale.api.limits import Limits as Limits
from claudescale.api.models import Model as Model
from claudescale.api.models import models as models
from claudescale.errors import ClaudescaleError as ClaudescaleError
from claudescale.errors import PlanError as PlanError
from claudescale.errors import RunStopped as RunStopped
from claudescale.evidence.cascades import cascade as cascade
from claudescale.evidence.trials import trial as trial
from claudescale.helpers import batch as batch
from claudescale.helpers import map as map  # noqa: A004 - the name says what it does
from claudescale.helpers import price as price
from claudescale.ledger.ledger import Ledger as Ledger
from claudescale.ledger.ledger import spend as spend
from claudescale.loops import wait as wait
from claudescale.pacing.middleware import limit as limit
from claudescale.planning.plans import Plan as Plan
from claudescale.planning.plans import plan as plan
from claudescale.prompts.templates import image as image
from claudescale.prompts.templates import pdf as pdf
from claudescale.running.runs import Run as Run
from claudescale.simulator import Simulator as Simulator
from claudescale.widgets.pick import pick as pick
from claudescale.widgets.watch import watch as watch

__version__: str
