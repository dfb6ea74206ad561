"""curl's library with GnuTLS: fetches a page of TLS 1.2 so many times, each over a new connection.

Debian has this build as a library alone, without a command.
"""
import ctypes
import sys

curl = ctypes.CDLL("libcurl-gnutls.so.4")
curl.curl_easy_init.restype = ctypes.c_void_p
curl.curl_easy_strerror.restype = ctypes.c_char_p
WRITER = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
URL, WRITEFUNCTION, SSLVERSION = 10002, 20011, 32
SSL_VERIFYPEER, SSL_VERIFYHOST, HTTP_VERSION = 64, 81, 84
HTTP_1_1 = 2
V12_ONLY = 6 | (6 << 16)

swallow = WRITER(lambda _data, size, count, _user: size * count)
handle = ctypes.c_void_p(curl.curl_easy_init())


def setopt(option, value):
    assert curl.curl_easy_setopt(handle, ctypes.c_int(option), value) == 0, option


setopt(URL, ctypes.c_char_p(sys.argv[1].encode()))
setopt(WRITEFUNCTION, swallow)
setopt(SSLVERSION, ctypes.c_long(V12_ONLY))
setopt(SSL_VERIFYPEER, ctypes.c_long(0))
setopt(SSL_VERIFYHOST, ctypes.c_long(0))
setopt(HTTP_VERSION, ctypes.c_long(HTTP_1_1))
for _ in range(int(sys.argv[2])):
    code = curl.curl_easy_perform(handle)
    if code != 0:
        sys.exit(curl.curl_easy_strerror(code).decode())
