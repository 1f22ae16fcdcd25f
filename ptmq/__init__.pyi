from ptmq.api import calibrate as calibrate
from ptmq.api import convert as convert
from ptmq.api import load as load
from ptmq.api import save as save
from ptmq.common.bits import BitGroups as BitGroups
from ptmq.common.bits import BitWidth as BitWidth
from ptmq.common.errors import InputError as InputError
from ptmq.network.model import MultiBitModel as MultiBitModel
