from demo.views import compose
from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("", compose, name="compose"),
    path("admin/", admin.site.urls),
]
