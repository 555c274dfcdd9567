"""A mail server for the tests on a free port of this machine.

Arguments: a directory for the certificate of its authority (ca.pem), and any of `auth` (user `pds`, password `hunter2`),
`starttls` (nothing is taken before it) and `tls` (from the first byte). Prints where it listens, then each mail that it takes as a
line of JSON. Receivers are answered by their names: `bounces@…` with 550, `greylisted@…` with 451 at the first try.
"""

import json
import ssl
import sys
import threading
from email import message_from_bytes, policy

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

place, modes = sys.argv[1], sys.argv[2:]
authority = trustme.CA()
authority.cert_pem.write_to_path(f"{place}/ca.pem")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
greylisted = set()


def tell(value):
    print(json.dumps(value), flush=True)


class Sink:
    async def handle_RCPT(self, server, session, envelope, address, options):
        name = address.split("@")[0]
        if name == "bounces":
            tell({"refused": 550})
            return f"550 5.1.1 <{address}> is unknown"
        if name == "greylisted" and address not in greylisted:
            greylisted.add(address)
            tell({"refused": 451})
            return "451 4.7.1 try again later"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        message = message_from_bytes(envelope.content, policy=policy.default)
        tell(
            {
                "to": envelope.rcpt_tos,
                "from": envelope.mail_from,
                "tls": session.ssl is not None or "tls" in modes,
                "user": bool(session.authenticated),
                "headers": {name.lower(): value for name, value in message.items()},
                "text": message.get_body(("plain",)).get_content(),
                "html": message.get_body(("html",)).get_content(),
            }
        )
        return "250 taken"


def check(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"pds", b"hunter2")
    # Not handled: it is the server that says so to the client.
    return AuthResult(success=good, handled=False)


options = {"hostname": "127.0.0.1", "port": 0}
if "auth" in modes:
    options |= {"authenticator": check, "auth_required": True}
    # Whether a password may be sent in the clear is the client's choice here.
    options |= {"auth_require_tls": "starttls" in modes}
if "starttls" in modes:
    options |= {"tls_context": context, "require_starttls": True}
if "tls" in modes:
    options |= {"ssl_context": context}


class OnFreePort(Controller):
    def _trigger_server(self):
        """The port is only known now."""
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


controller = OnFreePort(Sink(), **options)
controller.start()
print(f"listens on {controller.port}", flush=True)
# Until whoever started this ends it.
threading.Event().wait()
