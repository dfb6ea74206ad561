'''The instrument itself: with plain Traffic Server, does it tell a shared ticket key from another?

Two servers read one ticket key file, the third makes a key of its own. A ticket of the first has
to resume on the second and must not resume on the third. Without this a broken probe could let
the real test pass.
'''
import os

Test.Summary = __doc__.splitlines()[0]

cert, key = Test.MakeCertificate("server", "/CN=localhost")
shared_key = os.path.join(Test.RunDirectory, "ticket.key")
with open(shared_key, "wb") as file:
    file.write(os.urandom(48))
origin = Test.MakeOrigin("origin", "hello from the origin")
records = ["proxy.config.ssl.server.ticket_key.filename STRING " + shared_key]
issuer = Test.MakeServer("issuer", cert, key, origin, records)
sharer = Test.MakeServer("sharer", cert, key, origin, records)
stranger = Test.MakeServer("stranger", cert, key, origin)

take = Test.TakeTicket(issuer, "ticket.pem")
take.Processes.Default.StartBefore(origin)
for server in (issuer, sharer, stranger):
    take.Processes.Default.StartBefore(server)
    take.StillRunningAfter += server
Test.OfferTicket(issuer, "ticket.pem")
Test.OfferTicket(sharer, "ticket.pem")
Test.OfferTicket(stranger, "ticket.pem", resumes=False)
