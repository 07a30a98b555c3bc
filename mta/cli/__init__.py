"""The mta, mailq and sendmail commands; imports no Twisted."""
