"""Everything one worker needs: model, state, hand-off, engine, and the server around them.

Threads that compute together sleep while one waits for the other. OpenMP's default is to spin for
milliseconds, which on cores that others use too keeps the one that is waited for from running: a
step of 12 ms took 140 ms then, and takes 20 to 30 ms asleep. The library reads its setting when
torch is loaded, so it is made here, before anything of a worker loads it; a setting of the user's
stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
