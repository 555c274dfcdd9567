"""A service that speaks S3, for the tests: moto on a free port of this machine, in memory. Prints its URL.

Takes one request at a time, because moto looks at a condition and writes in two steps.
"""

import logging

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(f"listens on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
